import type { Dram, Frame } from '../dram.js';
import { hpa, hpaToPfn, offsetInPage, PAGE_SIZE } from '../units.js';
import type { EncryptionKey } from './memory-encryption.js';
import type { Rmp } from './rmp.js';
import { STATUS, type Status } from './status.js';

/** Position of the C-bit in a physical address on Milan and later parts. */
export const C_BIT_POSITION = 51;
const C_BIT = 2 ** C_BIT_POSITION;

/** Whether a physical address carries the C-bit. */
export const hasCBit = (address: number): boolean => address >= C_BIT;

/** The address itself. */
export const withoutCBit = (address: number): number => (hasCBit(address) ? address - C_BIT : address);

/** One frame's part of a range of physical memory. */
interface Span {
  readonly frame: Frame;
  /** First byte inside the frame. */
  readonly offset: number;
  readonly length: number;
}

/** A range of physical memory: its first address, which may carry the C-bit, and its length in bytes. */
export type Range = readonly [address: number, length: number];

/**
 * The secure processor's way to DRAM. It bypasses the CPUs' caches: nothing it writes leaves dirty lines. Addresses may carry
 * the C-bit, which does not choose the key. While SEV-SNP is initialised the legacy commands write only to pages that the
 * host has given to the firmware.
 */
export class FirmwareMemory {
  constructor(
    private readonly dram: Dram,
    private readonly rmp: Rmp,
  ) {}

  /**
   * A range as seen through `key` (null: the bare cells), or null if some byte of it is no memory in use. Inside one page it
   * is a view, valid until the page is looked at in another way; whoever keeps or changes it makes a copy.
   */
  read(address: number, length: number, key: EncryptionKey | null): Uint8Array | null {
    const frame = this.soleFrame(address, length);
    if (frame !== undefined) {
      const offset = offsetInPage(address);
      return frame.view(key).subarray(offset, offset + length);
    }
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

  /** Whether every byte of some ranges is memory that the firmware may write. */
  checkWrite(...ranges: readonly Range[]): Status {
    for (const [address, length] of ranges) {
      if (!this.rmp.isActive && this.soleFrame(address, length) !== undefined) continue;
      const spans = this.spans(address, length);
      if (spans === null) return STATUS.INVALID_ADDRESS;
      if (this.rmp.isActive && spans.some(({ frame }) => this.rmp.state(frame.pfn) !== 'firmware'))
        return STATUS.INVALID_PAGE_STATE;
    }
    return STATUS.SUCCESS;
  }

  /** Writes a range as seen through `key` (with a key, whole blocks), if `checkWrite` allows all of it. */
  write(address: number, bytes: Uint8Array, key: EncryptionKey | null): Status {
    const status = this.checkWrite([address, bytes.length]);
    if (status === STATUS.SUCCESS) this.writeAllowed(address, bytes, key);
    return status;
  }

  /** The same for a range that `checkWrite` has allowed in this command. */
  writeAllowed(address: number, bytes: Uint8Array, key: EncryptionKey | null): void {
    const sole = this.soleFrame(address, bytes.length);
    if (sole !== undefined) {
      this.writeInFrame(sole, offsetInPage(address), bytes, key);
      return;
    }
    let done = 0;
    for (const { frame, offset, length } of this.spans(address, bytes.length) ?? []) {
      this.writeInFrame(frame, offset, bytes.subarray(done, done + length), key);
      done += length;
    }
  }

  /** Encrypts a range of whole blocks in place, if `checkWrite` allows it, and shows its plaintext to `inspect` piece by piece. */
  encryptInPlace(address: number, length: number, key: EncryptionKey, inspect: (plaintext: Uint8Array) => void): Status {
    const sole = this.soleFrame(address, length);
    if (sole !== undefined && !this.rmp.isActive) {
      encryptPart(sole, offsetInPage(address), length, key, inspect);
      return STATUS.SUCCESS;
    }
    const status = this.checkWrite([address, length]);
    if (status !== STATUS.SUCCESS) return status;
    for (const { frame, offset, length: part } of this.spans(address, length) ?? [])
      encryptPart(frame, offset, part, key, inspect);
    return STATUS.SUCCESS;
  }

  /** The frame at a page-aligned address, for commands that check its state themselves. */
  frameAt(address: number): Frame | null {
    const start = withoutCBit(address);
    return start >= C_BIT || offsetInPage(start) !== 0 ? null : (this.dram.at(hpaToPfn(hpa(start))) ?? null);
  }

  /** The frame that holds a whole range, if one does and it is in use. */
  private soleFrame(address: number, length: number): Frame | undefined {
    const start = withoutCBit(address);
    if (start >= C_BIT || offsetInPage(start) + length > PAGE_SIZE) return undefined;
    return this.dram.at(hpaToPfn(hpa(start)));
  }

  private writeInFrame(frame: Frame, offset: number, bytes: Uint8Array, key: EncryptionKey | null): void {
    if (bytes.length === PAGE_SIZE) frame.overwrite(key, bytes);
    else if (frame.key === key) frame.viewForUncachedWrite(key).set(bytes, offset);
    else this.writeCells(frame, offset, bytes, key);
  }

  /** Blocks of a frame that is represented otherwise: they become ciphertext in its cells, the others stay as they are. */
  private writeCells(frame: Frame, offset: number, bytes: Uint8Array, key: EncryptionKey | null): void {
    const cells = frame.viewForUncachedWrite(null).subarray(offset, offset + bytes.length);
    cells.set(bytes);
    key?.seal(hpa(frame.hpa + offset), cells);
  }

  private spans(address: number, length: number): Span[] | null {
    const start = withoutCBit(address);
    if (start >= C_BIT) return null;
    const spans: Span[] = [];
    for (let at = start; at < start + length; ) {
      const frame = this.dram.at(hpaToPfn(hpa(at)));
      if (frame === undefined) return null;
      const offset = offsetInPage(at);
      const part = Math.min(PAGE_SIZE - offset, start + length - at);
      spans.push({ frame, offset, length: part });
      at += part;
    }
    return spans;
  }
}

/** Encrypts whole blocks of one frame in place, after `inspect` has seen them. */
function encryptPart(
  frame: Frame,
  offset: number,
  length: number,
  key: EncryptionKey,
  inspect: (plaintext: Uint8Array) => void,
): void {
  const cells = frame.viewForUncachedWrite(null);
  if (length === PAGE_SIZE) {
    inspect(cells);
    frame.retype(null, key);
  } else {
    const plaintext = cells.subarray(offset, offset + length);
    inspect(plaintext);
    key.seal(hpa(frame.hpa + offset), plaintext);
  }
}
