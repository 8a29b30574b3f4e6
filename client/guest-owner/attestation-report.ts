import { blob, lengthMistake, u32, u64, viewOf } from './bytes.js';

/** What a SEV-SNP attestation report says (SNP ABI, table 23): versions 2 to 5. */
export interface AttestationReport {
  readonly bytes: Uint8Array;
  readonly version: number;
  readonly guestSvn: number;
  readonly policy: bigint;
  readonly familyId: Uint8Array;
  readonly imageId: Uint8Array;
  readonly vmpl: number;
  readonly currentTcb: Uint8Array;
  readonly platformInfo: bigint;
  readonly signingKey: 'VCEK' | 'VLEK' | 'none';
  /** The platform is set to sign no reports (SNP_CONFIG's MASK_CHIP_KEY). */
  readonly maskChipKey: boolean;
  readonly reportData: Uint8Array;
  readonly measurement: Uint8Array;
  readonly hostData: Uint8Array;
  readonly idKeyDigest: Uint8Array;
  readonly authorKeyDigest: Uint8Array;
  readonly reportId: Uint8Array;
  readonly reportedTcb: Uint8Array;
  readonly chipId: Uint8Array;
  readonly committedTcb: Uint8Array;
  readonly launchTcb: Uint8Array;
  /** What the signature covers. */
  readonly signed: Uint8Array;
  /** R and S, little-endian in 72 bytes each. */
  readonly signature: Uint8Array;
}

export const REPORT_LENGTH = 1184;
const SIGNED_LENGTH = 0x2a0;
const VERSIONS: readonly number[] = [2, 3, 4, 5];
const ECDSA_P384_SHA384 = 1;
const SIGNING_KEYS: Readonly<Record<number, AttestationReport['signingKey']>> = { 0: 'VCEK', 1: 'VLEK', 7: 'none' };

/** Bytes of a response's head: STATUS and the report's length. */
const RESPONSE_HEADER = 32;

/** Where the report is in something longer. */
const withinOf = (bytes: Uint8Array): string => {
  if (bytes.length >= RESPONSE_HEADER + REPORT_LENGTH && u32(bytes, 4) === REPORT_LENGTH)
    return `: it is a response, which has the report behind its first ${RESPONSE_HEADER} bytes`;
  return bytes.length > REPORT_LENGTH && VERSIONS.includes(u32(bytes, 0))
    ? ': what is behind the report does not belong to it'
    : '';
};

/** Reads a report; whether it is genuine is another question. @throws RangeError if it is none of a known version */
export const parseReport = (bytes: Uint8Array): AttestationReport => {
  if (bytes.length !== REPORT_LENGTH) throw new RangeError(`no report: ${lengthMistake(bytes, REPORT_LENGTH)}${withinOf(bytes)}`);
  const version = u32(bytes, 0);
  if (!VERSIONS.includes(version))
    throw new RangeError(`a report of version ${version}, not of one from ${VERSIONS[0]} to ${VERSIONS.at(-1)}`);
  const algorithm = u32(bytes, 0x34);
  if (algorithm !== ECDSA_P384_SHA384)
    throw new RangeError(`a report with the signature algorithm ${algorithm}, not ${ECDSA_P384_SHA384}`);
  const keyInfo = u32(bytes, 0x48);
  const signingKey = SIGNING_KEYS[(keyInfo >> 2) & 7];
  if (signingKey === undefined) throw new RangeError(`a report with the signing key ${(keyInfo >> 2) & 7}, not 0, 1 or 7`);
  return {
    bytes: Uint8Array.from(bytes),
    version,
    guestSvn: u32(bytes, 4),
    policy: u64(bytes, 8),
    familyId: blob(bytes, 0x10, 16),
    imageId: blob(bytes, 0x20, 16),
    vmpl: viewOf(bytes).getInt32(0x30, true),
    currentTcb: blob(bytes, 0x38, 8),
    platformInfo: u64(bytes, 0x40),
    signingKey,
    maskChipKey: (keyInfo & 2) !== 0,
    reportData: blob(bytes, 0x50, 64),
    measurement: blob(bytes, 0x90, 48),
    hostData: blob(bytes, 0xc0, 32),
    idKeyDigest: blob(bytes, 0xe0, 48),
    authorKeyDigest: blob(bytes, 0x110, 48),
    reportId: blob(bytes, 0x140, 32),
    reportedTcb: blob(bytes, 0x180, 8),
    chipId: blob(bytes, 0x1a0, 64),
    committedTcb: blob(bytes, 0x1e0, 8),
    launchTcb: blob(bytes, 0x1f0, 8),
    signed: blob(bytes, 0, SIGNED_LENGTH),
    signature: blob(bytes, SIGNED_LENGTH, 144),
  };
};
