import { describe, expect, it } from 'vitest';
import { SharedFrames } from '../../../../../server/kernel/kvm/x86/shared-frames.js';

const SHARED = 0n;
const ENCRYPTED = 1n << 4n;

describe('the frames that an encrypted guest shares', () => {
  it('are none until it says so', () => {
    expect(new SharedFrames().list()).toEqual([]);
    expect(new SharedFrames().has(8)).toBe(false);
  });

  it('are a range, of which a part can become private again', () => {
    const frames = new SharedFrames();
    frames.mapGpaRange(8, 8, SHARED);
    frames.mapGpaRange(10, 2, ENCRYPTED);
    expect(frames.list()).toEqual([
      { first: 8, end: 10 },
      { first: 12, end: 16 },
    ]);
    expect([7, 8, 9, 10, 11, 12, 15, 16].filter((frame) => frames.has(frame))).toEqual([8, 9, 12, 15]);
  });

  it('are counted once where ranges meet, however large the guest says they are', () => {
    const frames = new SharedFrames();
    frames.mapGpaRange(0, 2 ** 40, SHARED);
    frames.mapGpaRange(4, 4, SHARED);
    expect(frames.has(5)).toBe(true);
    frames.mapGpaRange(0, 2 ** 40, ENCRYPTED);
    expect(frames.list()).toEqual([]);
  });
});
