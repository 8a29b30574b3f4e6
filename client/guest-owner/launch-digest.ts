import { createHash } from 'node:crypto';
import { type DirectBoot, kernelHashes } from './kernel-hashes.js';
import { parseOvmf } from './ovmf.js';
import { BSP_EIP, createVmsa } from './vmsa.js';

/** What a guest is launched from. */
export interface LaunchImage {
  /** The OVMF image, or another firmware for SEV without vCPUs' save areas. */
  readonly firmware: Uint8Array;
  /** A kernel whose hashes are measured with the firmware. @default none */
  readonly boot?: DirectBoot;
}

/** vCPUs whose save areas are measured. */
export interface MeasuredVcpus {
  readonly count: number;
  /** EAX of CPUID leaf 1. */
  readonly cpuSignature: number;
}

/** `KVM_MAX_VCPUS` at most. */
const VCPUS_MAX = 4096;

/** What LAUNCH_UPDATE_DATA takes whole numbers of. */
const BLOCK = 16;

/** SHA-256 over what is launched, in the order of LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA. Addresses do not count. */
export const launchDigest = (...parts: readonly Uint8Array[]): Uint8Array => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};

/** The firmware, and the table of hashes where a kernel is measured. @throws RangeError if the firmware has no place for it */
const imageParts = ({ firmware, boot }: LaunchImage): Uint8Array[] => {
  if (firmware.length === 0 || firmware.length % BLOCK !== 0)
    throw new RangeError(`the firmware has ${firmware.length} bytes, and not one or more blocks of ${BLOCK}`);
  if (boot === undefined) return [firmware];
  if (parseOvmf(firmware).hashTable === null) throw new RangeError('this OVMF image has no table for the hashes of a kernel');
  return [firmware, kernelHashes(boot)];
};

/** The launch digest of a SEV guest as QEMU launches it. */
export const sevLaunchDigest = (image: LaunchImage): Uint8Array => launchDigest(...imageParts(image));

/** The save areas of a guest's vCPUs at reset: the boot processor's, then those of the others. */
export const vmsaPages = (resetEip: number | null, { count, cpuSignature }: MeasuredVcpus, sevFeatures: bigint): Uint8Array[] => {
  if (count < 1 || count > VCPUS_MAX) throw new RangeError(`a guest has 1 to ${VCPUS_MAX} vCPUs, not ${count}`);
  if (count > 1 && resetEip === null) throw new RangeError('this OVMF image does not say where application processors begin');
  return Array.from({ length: count }, (_, index) =>
    createVmsa({ eip: index === 0 ? BSP_EIP : (resetEip ?? 0), sevFeatures, cpuSignature }),
  );
};

/** The launch digest of a SEV-ES guest as QEMU launches it. */
export const sevEsLaunchDigest = (image: LaunchImage, vcpus: MeasuredVcpus): Uint8Array =>
  launchDigest(...imageParts(image), ...vmsaPages(parseOvmf(image.firmware).resetEip, vcpus, 0n));
