import { blob, struct, u8, u32, u64 } from '../byte-layout.js';
import { encodeEcSignature } from '../certificates.js';
import type { FirmwareVersion } from '../launch-digest.js';
import { type KeyPair, sign } from '../p384.js';
import type { SnpLaunch, SnpLaunchEnd } from './snp-guest.js';

/** The attestation report of an SNP guest, version 3 (sev-firmware.md 3.16). The signature covers what stands before it. */
export const REPORT = struct(1184, {
  version: u32(0x000),
  guestSvn: u32(0x004),
  policy: u64(0x008),
  familyId: blob(0x010, 16),
  imageId: blob(0x020, 16),
  vmpl: u32(0x030),
  signatureAlgo: u32(0x034),
  currentTcb: u64(0x038),
  platformInfo: u64(0x040),
  /** Bit 0 AUTHOR_KEY_EN, bit 1 MASK_CHIP_KEY, bits 4:2 SIGNING_KEY. */
  keyInfo: u32(0x048),
  reportData: blob(0x050, 64),
  measurement: blob(0x090, 48),
  hostData: blob(0x0c0, 32),
  idKeyDigest: blob(0x0e0, 48),
  authorKeyDigest: blob(0x110, 48),
  reportId: blob(0x140, 32),
  reportIdMa: blob(0x160, 32),
  reportedTcb: u64(0x180),
  cpuidFamily: u8(0x188),
  cpuidModel: u8(0x189),
  cpuidStepping: u8(0x18a),
  chipId: blob(0x1a0, 64),
  committedTcb: u64(0x1e0),
  currentBuild: u8(0x1e8),
  currentMinor: u8(0x1e9),
  currentMajor: u8(0x1ea),
  committedBuild: u8(0x1ec),
  committedMinor: u8(0x1ed),
  committedMajor: u8(0x1ee),
  launchTcb: u64(0x1f0),
  signature: blob(0x2a0, 144),
});

export const REPORT_SIGNED_LENGTH = 0x2a0;

const VERSION = 3;
const ECDSA_P384_SHA384 = 1;

/** SIGNING_KEY. */
const SIGNING_KEY = { VCEK: 0, VLEK: 1, NONE: 7 } as const;

const AUTHOR_KEY_EN = 1 << 0;
const MASK_CHIP_KEY = 1 << 1;

/** Bits of PLATFORM_INFO. */
const PLATFORM_INFO = { SMT: 1n << 0n, ECC: 1n << 2n } as const;

/** Family, model and stepping of the simulated part: Milan B1. */
export const CPU_SIGNATURE = { family: 0x19, model: 0x01, stepping: 0x01 } as const;

export interface ReportRequest {
  readonly reportData: Uint8Array;
  readonly vmpl: number;
}

/** What a report says of the platform. */
export interface ReportPlatform {
  readonly version: FirmwareVersion;
  readonly smt: boolean;
  readonly currentTcb: bigint;
  readonly committedTcb: bigint;
  readonly reportedTcb: bigint;
  /** Zeros if masked. */
  readonly chipId: Uint8Array;
  readonly maskChipKey: boolean;
}

/** Who signs: nobody if SNP_CONFIG masks the chip's key. */
export interface ReportSigner {
  readonly kind: 'VCEK' | 'VLEK';
  readonly key: () => KeyPair;
}

/** Makes and signs a report. */
export function createReport(
  request: ReportRequest,
  launch: SnpLaunch,
  end: SnpLaunchEnd,
  platform: ReportPlatform,
  signer: ReportSigner,
): Uint8Array {
  const report = new Uint8Array(REPORT.size);
  REPORT.version.set(report, VERSION);
  REPORT.vmpl.set(report, request.vmpl);
  REPORT.signatureAlgo.set(report, ECDSA_P384_SHA384);
  REPORT.reportData.set(report, request.reportData);
  describeGuest(report, launch, end);
  describePlatform(report, platform);
  const signingKey = platform.maskChipKey ? SIGNING_KEY.NONE : SIGNING_KEY[signer.kind];
  const hasAuthorKey = end.idBlock !== null && end.idBlock.authorKeyDigest !== null;
  REPORT.keyInfo.set(report, (hasAuthorKey ? AUTHOR_KEY_EN : 0) | (platform.maskChipKey ? MASK_CHIP_KEY : 0) | (signingKey << 2));
  if (platform.maskChipKey) return report;
  const signature = sign('sha384', signer.key().privateKey, report.subarray(0, REPORT_SIGNED_LENGTH));
  REPORT.signature.set(report, encodeEcSignature(signature));
  return report;
}

function describeGuest(report: Uint8Array, launch: SnpLaunch, { hostData, idBlock }: SnpLaunchEnd): void {
  REPORT.policy.set(report, launch.policy);
  REPORT.measurement.set(report, launch.digest);
  REPORT.hostData.set(report, hostData);
  REPORT.reportId.set(report, launch.reportId);
  // No guest of this platform has a migration agent.
  REPORT.reportIdMa.set(report, new Uint8Array(32).fill(0xff));
  REPORT.launchTcb.set(report, launch.launchTcb);
  if (idBlock === null) return;
  REPORT.guestSvn.set(report, idBlock.guestSvn);
  REPORT.familyId.set(report, idBlock.familyId);
  REPORT.imageId.set(report, idBlock.imageId);
  REPORT.idKeyDigest.set(report, idBlock.idKeyDigest);
  REPORT.authorKeyDigest.set(report, idBlock.authorKeyDigest ?? new Uint8Array(0));
}

function describePlatform(report: Uint8Array, platform: ReportPlatform): void {
  const { major, minor, build } = platform.version;
  REPORT.currentTcb.set(report, platform.currentTcb);
  REPORT.committedTcb.set(report, platform.committedTcb);
  REPORT.reportedTcb.set(report, platform.reportedTcb);
  REPORT.platformInfo.set(report, PLATFORM_INFO.ECC | (platform.smt ? PLATFORM_INFO.SMT : 0n));
  REPORT.cpuidFamily.set(report, CPU_SIGNATURE.family);
  REPORT.cpuidModel.set(report, CPU_SIGNATURE.model);
  REPORT.cpuidStepping.set(report, CPU_SIGNATURE.stepping);
  REPORT.chipId.set(report, platform.chipId);
  REPORT.currentBuild.set(report, build);
  REPORT.currentMinor.set(report, minor);
  REPORT.currentMajor.set(report, major);
  REPORT.committedBuild.set(report, build);
  REPORT.committedMinor.set(report, minor);
  REPORT.committedMajor.set(report, major);
}
