import type { Dram, Frame } from '../dram.js';
import { hpa, hpaToPfn, PAGE_SIZE } from '../units.js';
import type { EncryptionKey } from './memory-encryption.js';

/** Position of the C-bit in a physical address on Milan and later parts. */
export const C_BIT_POSITION = 51;
const C_BIT = 2 ** C_BIT_POSITION;

/** Whether a physical address carries the C-bit. */
export const hasCBit = (address: number): boolean => address >= C_BIT;

/** One frame's part of a range of physical memory. */
interface Span {
  readonly frame: Frame;
  /** First byte inside the frame. */
  readonly offset: number;
  readonly length: number;
}

/**
 * The secure processor's way to DRAM. It bypasses the CPUs' caches: nothing it writes leaves dirty lines. Addresses may carry
 * the C-bit, which does not choose the key. Every method gives null or false, and touches nothing, if some byte of the
 * range is no memory in use.
 */
export class FirmwareMemory {
  constructor(private readonly dram: Dram) {}

  /** A copy of a range as seen through `key` (null: the bare cells). */
  read(address: number, length: number, key: EncryptionKey | null): Uint8Array | null {
    const spans = this.spans(address, length);
    if (spans === null) return null;
    const bytes = new Uint8Array(length);
    let done = 0;
    for (const { frame, offset, length: part } of spans) {
      bytes.set(frame.view(key).subarray(offset, offset + part), done);
      done += part;
    }
    return bytes;
  }

  /** Writes a range as seen through `key`; with a key, in whole blocks. */
  write(address: number, bytes: Uint8Array, key: EncryptionKey | null): boolean {
    const spans = this.spans(address, bytes.length);
    if (spans === null) return false;
    let done = 0;
    for (const { frame, offset, length } of spans) {
      const part = bytes.subarray(done, done + length);
      if (length === PAGE_SIZE) frame.overwrite(key, part);
      else if (frame.key === key) frame.viewForUncachedWrite(key).set(part, offset);
      else this.writeCells(frame, offset, part, key);
      done += length;
    }
    return true;
  }

  /** Whether `length` bytes from `address` on can be read and written. */
  isBacked(address: number, length: number): boolean {
    return this.spans(address, length) !== null;
  }

  /** Encrypts a range of whole blocks in place and shows its plaintext to `inspect` piece by piece. */
  encryptInPlace(address: number, length: number, key: EncryptionKey, inspect: (plaintext: Uint8Array) => void): boolean {
    const spans = this.spans(address, length);
    if (spans === null) return false;
    for (const { frame, offset, length: part } of spans) {
      const plaintext = frame.viewForUncachedWrite(null).subarray(offset, offset + part);
      inspect(plaintext);
      if (part === PAGE_SIZE) frame.retype(null, key);
      else key.seal(hpa(frame.hpa + offset), plaintext);
    }
    return true;
  }

  /** Blocks of a frame that is represented otherwise: they become ciphertext in its cells, the others stay as they are. */
  private writeCells(frame: Frame, offset: number, bytes: Uint8Array, key: EncryptionKey | null): void {
    const cells = frame.viewForUncachedWrite(null).subarray(offset, offset + bytes.length);
    cells.set(bytes);
    key?.seal(hpa(frame.hpa + offset), cells);
  }

  private spans(address: number, length: number): Span[] | null {
    const start = hasCBit(address) ? address - C_BIT : address;
    if (start >= C_BIT) return null;
    const spans: Span[] = [];
    for (let at = start; at < start + length; ) {
      const frame = this.dram.at(hpaToPfn(hpa(at)));
      if (frame === undefined) return null;
      const offset = at % PAGE_SIZE;
      const part = Math.min(PAGE_SIZE - offset, start + length - at);
      spans.push({ frame, offset, length: part });
      at += part;
    }
    return spans;
  }
}
