/**
 * What the owner of a guest computes and verifies, with files and no host: sessions, expected launch digests, measurements,
 * secrets, attestation reports. It is for blobs of real hardware as well as of simulated.
 */
export { keyFingerprint, type Root } from './amd-roots.js';
export { type AttestationReport, parseReport } from './attestation-report.js';
export { type IdBlock, verifyIdBlock } from './id-block.js';
export { type DirectBoot, kernelHashes } from './kernel-hashes.js';
export { type LaunchImage, launchDigest, type MeasuredVcpus, sevEsLaunchDigest, sevLaunchDigest } from './launch-digest.js';
export { launchMeasurement, type Measured, verifyMeasurement } from './measurement.js';
export { type Ovmf, type OvmfSection, parseOvmf } from './ovmf.js';
export { type Secret, type SecretPacket, sealSecret, secretTable } from './secret.js';
export { createLaunchSession, type LaunchSession, openSession, type SessionRequest, type TransportKeys } from './session.js';
export {
  type ExpectedSevReport,
  judgeSevReport,
  parseSevReport,
  type SevAttestationReport,
  type SevReportVerdict,
  verifySevReport,
} from './sev-attestation-report.js';
export { type PlatformCertificates, type PlatformVerdict, verifyPlatform } from './sev-certificate.js';
export { SNP_PAGE, SnpLaunchDigest, type SnpLaunchOptions, snpLaunchDigest } from './snp-launch-digest.js';
export type { Check, Verdict } from './verdict.js';
export {
  createReportVerifier,
  type Expected,
  type ReportVerdict,
  type VerifyReportOptions,
  verifyReport,
} from './verify-report.js';
export { CPU_SIGNATURE, createVmsa, type VmsaOptions } from './vmsa.js';
