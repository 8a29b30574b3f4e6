import { createCipheriv } from 'node:crypto';
import { PAGE_SIZE } from '../units.js';

const BLOCK = 16;
/** The key stream is added 8 bytes at a time: V8 compiles exclusive or of 64-bit words to what the CPU has for it. */
const WORD = 8;
const WORDS_PER_BLOCK = BLOCK / WORD;
/** Key stream that is made at once for packets that follow each other: each call of the library costs as much as 4 KiB of AES. */
const AHEAD = new Uint8Array(4 * PAGE_SIZE);

/** AES-CTR: an object that is never finished, so that its key schedule is made once, and which goes on where it was. */
interface Ctr {
  update(data: Uint8Array): Uint8Array;
}

/**
 * AES-128-CTR under one key, for packets of which each has an initialisation vector, its first counter block. Any vector is
 * good; the stream goes on, and need not begin anew, where it is the counter block behind the last one of the packet before.
 */
export class KeyStream {
  /** The counter block that comes next. */
  readonly next = new Uint8Array(BLOCK);
  private cipher: Ctr | null = null;
  private words: BigUint64Array = new BigUint64Array(0);
  private used = 0;

  constructor(private readonly key: Uint8Array) {}

  /** Whether `next` stands behind a packet. */
  get hasBegun(): boolean {
    return this.cipher !== null;
  }

  /**
   * Adds `blocks` blocks of stream to `words`, which encrypts and decrypts.
   * @param first word to which it is added
   */
  add(iv: Uint8Array, words: BigUint64Array, first: number, blocks: number): void {
    const continues = this.continues(iv);
    const cipher = continues ?? this.begin(iv);
    const end = first + blocks * WORDS_PER_BLOCK;
    for (let at = first; at < end; ) {
      if (this.used === this.words.length) this.fill(cipher, continues === null ? (end - at) * WORD : AHEAD.length);
      const count = Math.min(end - at, this.words.length - this.used);
      addWords(words, at, this.words, this.used, count);
      this.used += count;
      at += count;
    }
    this.advance(blocks);
  }

  private continues(iv: Uint8Array): Ctr | null {
    for (let at = 0; at < BLOCK; at++) if (iv[at] !== this.next[at]) return null;
    return this.cipher;
  }

  private begin(iv: Uint8Array): Ctr {
    this.cipher = createCipheriv('aes-128-ctr', this.key, iv);
    this.next.set(iv);
    this.used = this.words.length;
    return this.cipher;
  }

  /** @param wanted bytes; no more than these are made of a stream of which nobody knows whether it goes on */
  private fill(cipher: Ctr, wanted: number): void {
    const { buffer, byteOffset, length } = cipher.update(AHEAD.subarray(0, wanted));
    this.words = new BigUint64Array(buffer, byteOffset, length / WORD);
    this.used = 0;
  }

  /** Counts 128 bits, the most significant byte first. */
  private advance(blocks: number): void {
    for (let at = BLOCK - 1, carry = blocks; at >= 0 && carry > 0; at--) {
      carry += this.next[at];
      this.next[at] = carry;
      carry = Math.floor(carry / 256);
    }
  }
}

function addWords(to: BigUint64Array, at: number, stream: BigUint64Array, from: number, count: number): void {
  const shift = from - at;
  for (let word = at; word < at + count; word++) to[word] ^= stream[word + shift];
}
