import { Failure, type Result } from '../failure.js';
import type { IoctlArg, UserCopy } from './ioctl-arg.js';

/** First address of inline bytes: not canonical, so no process can have anything there. */
const INLINE_BASE = 0x0080_0000_0000_0000n;
const SLOT = 0x1_0000_0000n;

/**
 * Bytes that came with a call instead of lying in its process's memory. They get addresses for the duration of the
 * call; every other address is the process's. What the kernel writes to them goes back with the reply.
 */
export class InlineCopy implements UserCopy {
  private readonly segments: Uint8Array[] = [];

  constructor(private readonly process: UserCopy) {}

  /** Makes `data` reachable for the kernel, which may overwrite it. Returns its address. */
  place(data: Uint8Array): bigint {
    this.segments.push(data);
    return INLINE_BASE + BigInt(this.segments.length - 1) * SLOT;
  }

  copyIn(address: bigint, length: number): Result<Uint8Array> {
    if (address < INLINE_BASE) return this.process.copyIn(address, length);
    const window = this.window(address, length);
    return window instanceof Failure ? window : window.slice();
  }

  copyOut(address: bigint, bytes: Uint8Array): Failure | null {
    if (address < INLINE_BASE) return this.process.copyOut(address, bytes);
    const window = this.window(address, bytes.length);
    if (window instanceof Failure) return window;
    window.set(bytes);
    return null;
  }

  private window(address: bigint, length: number): Result<Uint8Array> {
    const segment = this.segments[Number((address - INLINE_BASE) / SLOT)];
    const offset = Number((address - INLINE_BASE) % SLOT);
    if (segment === undefined || offset + length > segment.length)
      return new Failure('EFAULT', 'INLINE_DATA_TOO_SHORT', 'copy_from_user', {
        needed: String(offset + length),
        given: String(segment?.length ?? 0),
      });
    return segment.subarray(offset, offset + length);
  }
}

/** The argument of an ioctl whose structure was given inline; `data` holds the result afterwards. */
export const inlineArg = (process: UserCopy, data: Uint8Array): IoctlArg => {
  const user = new InlineCopy(process);
  return { value: user.place(data), user };
};
