import type { Dram, Frame } from '../../../hardware/dram.js';
import { type Hpa, hpa, PAGE_SIZE } from '../../../hardware/units.js';

/** `SEV_FW_BLOB_MAX_SIZE`: longest blob that goes to or comes from the firmware. */
export const SEV_FW_BLOB_MAX_SIZE = 0x4000;

/** Most blobs that one command has: SEND_START, with a certificate, two chains and a session. */
export const BLOB_SLOTS = 4;

/**
 * Physically contiguous memory for the mailbox: one page for the command buffer, and room for the blobs of one command.
 * The driver takes it when it is probed and keeps it; commands are serial, so nothing in it outlives one.
 */
export class FirmwareBuffers {
  private constructor(private readonly frames: readonly Frame[]) {}

  /** At probe: memory is fresh, so the frames follow each other. */
  static allocate(dram: Dram): FirmwareBuffers {
    const frames: Frame[] = [];
    for (let index = 0; index < 1 + (BLOB_SLOTS * SEV_FW_BLOB_MAX_SIZE) / PAGE_SIZE; index++) {
      const frame = dram.allocate();
      const last = frames.at(-1);
      if (frame === null || (last !== undefined && frame.pfn !== last.pfn + 1)) throw new Error('no contiguous memory at boot');
      frames.push(frame);
    }
    return new FirmwareBuffers(frames);
  }

  /** Frames that are taken for good. */
  get frameCount(): number {
    return this.frames.length;
  }

  /** Address of the command buffer. */
  get command(): Hpa {
    return hpa(this.frameAt(0).hpa);
  }

  /** The page that a blob slot begins with. */
  blobPage(slot: number): Frame {
    return this.frameAt(1 + (slot * SEV_FW_BLOB_MAX_SIZE) / PAGE_SIZE);
  }

  /** Address of a blob slot. */
  blob(slot: number): Hpa {
    return hpa(this.command + PAGE_SIZE + slot * SEV_FW_BLOB_MAX_SIZE);
  }

  /** Bytes that lie in one page, as they are until the next command. */
  view(address: Hpa, length: number): Uint8Array {
    const start = address - this.command;
    const offset = start % PAGE_SIZE;
    if (offset + length > PAGE_SIZE) throw new Error('a view of the firmware buffers goes over the end of its page');
    return this.frameAt(Math.floor(start / PAGE_SIZE))
      .viewForWrite(null)
      .subarray(offset, offset + length);
  }

  read(address: Hpa, length: number): Uint8Array {
    const out = new Uint8Array(length);
    this.spans(address, length, (cells, done) => out.set(cells, done));
    return out;
  }

  write(address: Hpa, bytes: Uint8Array): void {
    if ((address % PAGE_SIZE) + bytes.length <= PAGE_SIZE) this.view(address, bytes.length).set(bytes);
    else this.spans(address, bytes.length, (cells, done) => cells.set(bytes.subarray(done, done + cells.length)));
  }

  private spans(address: Hpa, length: number, visit: (cells: Uint8Array, done: number) => void): void {
    const start = address - this.command;
    for (let done = 0; done < length; ) {
      const offset = (start + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, length - done);
      const frame = this.frameAt(Math.floor((start + done) / PAGE_SIZE));
      visit(frame.viewForWrite(null).subarray(offset, offset + count), done);
      done += count;
    }
  }

  private frameAt(index: number): Frame {
    const frame = this.frames[index];
    if (frame === undefined) throw new Error(`firmware buffer page ${index} does not exist`);
    return frame;
  }
}
