import { createCipheriv, createHash, createHmac } from 'node:crypto';

/** A seeded source of random bytes: the same seed and the same calls give the same bytes. */
export interface Entropy {
  /** The next `length` bytes of this source. */
  bytes(length: number): Uint8Array;
  /**
   * An independent source that depends on this one's seed and on `label` only, not on what was drawn before. So a key
   * that is made at its first use is the same whenever that use comes. The same label gives the same source again.
   */
  fork(label: string): Entropy;
}

const BLOCK = 1024;
const ZEROES = new Uint8Array(BLOCK);

/** An AES-256-CTR generator keyed by the SHA-256 of `seed`. */
export function createEntropy(seed: string | Uint8Array): Entropy {
  return generator(createHash('sha256').update(seed).digest());
}

function generator(key: Uint8Array): Entropy {
  const cipher = createCipheriv('aes-256-ctr', key, new Uint8Array(16));
  let block: Uint8Array = ZEROES;
  let used = BLOCK;

  function bytes(length: number): Uint8Array {
    const out = new Uint8Array(length);
    for (let filled = 0; filled < length; ) {
      if (used === BLOCK) {
        block = cipher.update(ZEROES);
        used = 0;
      }
      const step = Math.min(length - filled, BLOCK - used);
      out.set(block.subarray(used, used + step), filled);
      filled += step;
      used += step;
    }
    return out;
  }

  return { bytes, fork: (label) => generator(createHmac('sha256', key).update(label).digest()) };
}
