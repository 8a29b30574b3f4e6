import type { KeyObject } from 'node:crypto';
import { blob, struct, u8, u32 } from './byte-layout.js';
import type { FirmwareVersion } from './launch-digest.js';
import { signPss, verifyPss } from './rsa-pss.js';

/**
 * An image for DOWNLOAD_FIRMWARE: a header that names a version, signed by the simulated root. AMD's format is not
 * public, and what the firmware does is this program, so an image carries nothing but its version.
 */
const FIRMWARE_IMAGE = struct(544, { magic: u32(0), major: u8(4), minor: u8(5), build: u8(6), signature: blob(32, 512) });

export const FIRMWARE_IMAGE_LENGTH = FIRMWARE_IMAGE.size;

/** `SEVF` */
const MAGIC = 0x46564553;

const signedPart = (image: Uint8Array): Uint8Array => image.subarray(0, FIRMWARE_IMAGE.signature.offset);

export function createFirmwareImage({ major, minor, build }: FirmwareVersion, signer: KeyObject): Uint8Array {
  const image = new Uint8Array(FIRMWARE_IMAGE.size);
  FIRMWARE_IMAGE.magic.set(image, MAGIC);
  FIRMWARE_IMAGE.major.set(image, major);
  FIRMWARE_IMAGE.minor.set(image, minor);
  FIRMWARE_IMAGE.build.set(image, build);
  FIRMWARE_IMAGE.signature.set(image, signPss('sha384', signer, signedPart(image)));
  return image;
}

/** The version of an image that the root has signed, or null. */
export function verifyFirmwareImage(image: Uint8Array, root: KeyObject): FirmwareVersion | null {
  if (FIRMWARE_IMAGE.magic.get(image) !== MAGIC) return null;
  if (!verifyPss('sha384', root, signedPart(image), FIRMWARE_IMAGE.signature.get(image))) return null;
  return {
    major: FIRMWARE_IMAGE.major.get(image),
    minor: FIRMWARE_IMAGE.minor.get(image),
    build: FIRMWARE_IMAGE.build.get(image),
  };
}
