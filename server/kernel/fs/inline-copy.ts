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

/** Where in its segment an inline address lies. */
const offsetOf = (address: bigint): number => Number((address - INLINE_BASE) % SEGMENT_SPAN);

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
    const segment = this.reach(address, length, false);
    const offset = offsetOf(address);
    return failed(segment) ? segment : segment.data.slice(offset, offset + length);
  }

  copyOut(address: bigint, bytes: Uint8Array): Failure | null {
    this.dirty = true;
    if (address < INLINE_BASE) return this.process.copyOut(address, bytes);
    const segment = this.reach(address, bytes.length, true);
    if (failed(segment)) return segment;
    segment.data.set(bytes, offsetOf(address));
    segment.written = true;
    return null;
  }

  private add(segment: Segment): bigint {
    this.segments.push(segment);
    return INLINE_BASE + BigInt(this.segments.length - 1) * SEGMENT_SPAN;
  }

  private segmentAt(address: bigint): Segment | undefined {
    return this.segments[Number((address - INLINE_BASE) / SEGMENT_SPAN)];
  }

  /** The segment that has `length` bytes at `address`, or can be grown to. */
  private reach(address: bigint, length: number, write: boolean): Result<Segment> {
    const segment = this.segmentAt(address);
    const end = offsetOf(address) + length;
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
    return segment;
  }
}

/** The argument of an ioctl whose structure was given inline; `data` holds the result afterwards. */
export const inlineArg = (process: UserCopy, data: Uint8Array): IoctlArg => {
  const user = new InlineCopy(process);
  return { value: user.place(data), user };
};
