import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg, UserCopy } from './ioctl-arg.js';

/** First address of inline bytes: not canonical, so no process can have anything there. */
const INLINE_BASE = 0x0080_0000_0000_0000n;
const SEGMENT_SPAN = 0x1_0000_0000n;
/** Most bytes that a segment which grows may hold. */
const GROWTH_MAX = 64 * 2 ** 20;

interface Segment {
  data: Uint8Array;
  readonly grows: boolean;
  written: boolean;
}

/**
 * Bytes that came with a call instead of lying in its process's memory. They get addresses for the duration of the
 * call; every other address is the process's. What the kernel writes to them goes back with the reply.
 */
export class InlineCopy implements UserCopy {
  private readonly segments: Segment[] = [];
  private dirty = false;

  constructor(private readonly process: UserCopy) {}

  /** Whether the kernel has written anything, here or to the process's memory. */
  get written(): boolean {
    return this.dirty;
  }

  /** Makes `data` reachable for the kernel, which may overwrite it. Returns its address. */
  place(data: Uint8Array): bigint {
    return this.add({ data, grows: false, written: false });
  }

  /** Like `place`, with room behind `data` for whatever the kernel writes there. */
  placeGrowing(data: Uint8Array): bigint {
    return this.add({ data, grows: true, written: false });
  }

  /** What lies at an address that `place` or `placeGrowing` gave, as the kernel has left it. */
  contents(address: bigint): Uint8Array {
    return this.segmentAt(address)?.data ?? new Uint8Array(0);
  }

  /** Whether the kernel has written to what lies at such an address. */
  writtenAt(address: bigint): boolean {
    return this.segmentAt(address)?.written ?? false;
  }

  copyIn(address: bigint, length: number): Result<Uint8Array> {
    if (address < INLINE_BASE) return this.process.copyIn(address, length);
    const window = this.window(address, length, false);
    return failed(window) ? window : window.slice();
  }

  copyOut(address: bigint, bytes: Uint8Array): Failure | null {
    this.dirty = true;
    if (address < INLINE_BASE) return this.process.copyOut(address, bytes);
    const window = this.window(address, bytes.length, true);
    if (failed(window)) return window;
    window.set(bytes);
    const segment = this.segmentAt(address);
    if (segment !== undefined) segment.written = true;
    return null;
  }

  private add(segment: Segment): bigint {
    this.segments.push(segment);
    return INLINE_BASE + BigInt(this.segments.length - 1) * SEGMENT_SPAN;
  }

  private segmentAt(address: bigint): Segment | undefined {
    return this.segments[Number((address - INLINE_BASE) / SEGMENT_SPAN)];
  }

  private window(address: bigint, length: number, write: boolean): Result<Uint8Array> {
    const segment = this.segmentAt(address);
    const offset = Number((address - INLINE_BASE) % SEGMENT_SPAN);
    const end = offset + length;
    if (segment !== undefined && write && segment.grows && end > segment.data.length && end <= GROWTH_MAX) {
      const grown = new Uint8Array(end);
      grown.set(segment.data);
      segment.data = grown;
    }
    if (segment === undefined || end > segment.data.length)
      return new Failure('EFAULT', 'INLINE_DATA_TOO_SHORT', write ? 'copy_to_user' : 'copy_from_user', {
        needed: `${end} bytes`,
        given: `${segment?.data.length ?? 0} bytes`,
      });
    return segment.data.subarray(offset, end);
  }
}

/** The argument of an ioctl whose structure was given inline; `data` holds the result afterwards. */
export const inlineArg = (process: UserCopy, data: Uint8Array): IoctlArg => {
  const user = new InlineCopy(process);
  return { value: user.place(data), user };
};
