import { readFile } from 'node:fs/promises';
import { type GuestImage, PAGE } from './image.js';

const FOUR_GIB = 2 ** 32;
const FIRMWARE_BYTES_MAX = 16 * 2 ** 20;

/**
 * A firmware image from a file, as OVMF: it ends at 4 GiB, where a CPU starts after reset. It is launched and measured, not run.
 * @throws RangeError if it is no whole number of pages, or too large
 */
export const firmwareImage = async (path: string): Promise<GuestImage> => {
  const bytes = new Uint8Array(await readFile(path));
  if (bytes.length === 0 || bytes.length % PAGE !== 0 || bytes.length > FIRMWARE_BYTES_MAX)
    throw new RangeError(
      `${path}: ${bytes.length} bytes are no firmware: whole pages of 4 KiB, at most ${FIRMWARE_BYTES_MAX} bytes`,
    );
  const gpa = FOUR_GIB - bytes.length;
  return { name: path, segments: [{ gpa, bytes }], firmware: { gpa, size: bytes.length }, start: null, runs: false };
};
