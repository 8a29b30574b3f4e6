import type { Dram, Frame } from '../../../hardware/dram.js';
import { type Hpa, hpa, PAGE_SIZE } from '../../../hardware/units.js';

/** Physically contiguous pages of the driver's own, taken when it is probed and kept: memory is fresh then. */
export class ContiguousPages {
  readonly frames: readonly Frame[];
  /** Address of the first byte. */
  readonly start: Hpa;

  constructor(dram: Dram, pages: number) {
    const frames: Frame[] = [];
    for (let index = 0; index < pages; index++) {
      const frame = dram.allocate();
      const last = frames.at(-1);
      if (frame === null || (last !== undefined && frame.pfn !== last.pfn + 1)) throw new Error('no contiguous memory at boot');
      frames.push(frame);
    }
    this.frames = frames;
    this.start = hpa(this.frameAt(0).hpa);
  }

  /** Bytes that lie in one page. */
  view(address: Hpa, length: number): Uint8Array {
    const start = address - this.start;
    const offset = start % PAGE_SIZE;
    if (offset + length > PAGE_SIZE) throw new Error('a view of contiguous pages goes over the end of its page');
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

  protected frameAt(index: number): Frame {
    const frame = this.frames[index];
    if (frame === undefined) throw new Error(`contiguous page ${index} does not exist`);
    return frame;
  }

  private spans(address: Hpa, length: number, visit: (cells: Uint8Array, done: number) => void): void {
    const start = address - this.start;
    for (let done = 0; done < length; ) {
      const offset = (start + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, length - done);
      const frame = this.frameAt(Math.floor((start + done) / PAGE_SIZE));
      visit(frame.viewForWrite(null).subarray(offset, offset + count), done);
      done += count;
    }
  }
}
