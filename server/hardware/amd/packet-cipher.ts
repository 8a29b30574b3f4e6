import { createCipheriv, createHmac, hash } from 'node:crypto';
import { PAGE_SIZE } from '../units.js';
import { counterMode, type TransportKeys } from './session.js';

const BLOCK = 16;
/** Length of the block that SHA-256 works on. */
const HASH_BLOCK = 64;
const DIGEST = 32;
/** Bytes that are authenticated beside a page of data, at most. */
const BESIDE_MAX = 64;
const NOTHING = new Uint8Array(0);

/** AES of single blocks: an object that is never finished, so that its key schedule is made once. */
interface Ecb {
  update(data: Uint8Array): Uint8Array;
}

/**
 * AES-128-CTR and HMAC-SHA-256 under the keys of one session, for many packets of at most a page: the key schedule and the
 * padded key are made once. An object of the crypto library for each packet would cost as much as the cipher itself.
 */
export class PacketCipher {
  private readonly ecb: Ecb;
  private readonly counters = new Uint8Array(PAGE_SIZE);
  private readonly counterWords = new DataView(this.counters.buffer);
  /** The key's inner pad, then what is authenticated; the outer pad, then the inner digest (RFC 2104). */
  private readonly inner = new Uint8Array(HASH_BLOCK + BESIDE_MAX + PAGE_SIZE);
  private readonly outer = new Uint8Array(HASH_BLOCK + DIGEST);

  constructor(private readonly keys: TransportKeys) {
    this.ecb = createCipheriv('aes-128-ecb', keys.tek, null).setAutoPadding(false);
    for (let at = 0; at < HASH_BLOCK; at++) {
      const byte = at < keys.tik.length ? keys.tik[at] : 0;
      this.inner[at] = byte ^ 0x36;
      this.outer[at] = byte ^ 0x5c;
    }
  }

  /** Encrypts or decrypts; the whole initialisation vector is the first counter block. */
  crypt(iv: Uint8Array, data: Uint8Array): Uint8Array {
    const first = new DataView(iv.buffer, iv.byteOffset).getUint32(BLOCK - 4);
    const blocks = data.length / BLOCK;
    const inWords = Number.isInteger(blocks) && data.length <= PAGE_SIZE && data.byteOffset % 4 === 0;
    // A counter that carries into its upper words is left to the library.
    if (!inWords || first + blocks > 2 ** 32) return counterMode(this.keys.tek, iv, data);
    this.fillCounters(iv, first, blocks);
    const stream = this.ecb.update(this.counters.subarray(0, data.length));
    return addStream(stream, data);
  }

  /** HMAC-SHA-256 of three pieces, one behind the other. */
  mac(prefix: Uint8Array, data: Uint8Array, suffix: Uint8Array = NOTHING): Uint8Array {
    const length = HASH_BLOCK + prefix.length + data.length + suffix.length;
    if (length > this.inner.length)
      return createHmac('sha256', this.keys.tik).update(prefix).update(data).update(suffix).digest();
    this.inner.set(prefix, HASH_BLOCK);
    this.inner.set(data, HASH_BLOCK + prefix.length);
    this.inner.set(suffix, length - suffix.length);
    this.outer.set(hash('sha256', this.inner.subarray(0, length), 'buffer'), HASH_BLOCK);
    return hash('sha256', this.outer, 'buffer');
  }

  private fillCounters(iv: Uint8Array, first: number, blocks: number): void {
    const { counters, counterWords } = this;
    const length = BLOCK * blocks;
    counters.set(iv);
    for (let done = BLOCK; done < length; done *= 2) counters.copyWithin(done, 0, Math.min(done, length - done));
    for (let block = 1; block < blocks; block++) counterWords.setUint32(BLOCK * block + BLOCK - 4, first + block);
  }
}

const wordsOf = (bytes: Uint8Array, count: number): Uint32Array => new Uint32Array(bytes.buffer, bytes.byteOffset, count);

const addStream = (stream: Uint8Array, data: Uint8Array): Uint8Array => {
  const out = new Uint32Array(data.length / 4);
  const key = wordsOf(stream, out.length);
  const words = wordsOf(data, out.length);
  for (let at = 0; at < out.length; at++) out[at] = words[at] ^ key[at];
  return new Uint8Array(out.buffer);
};
