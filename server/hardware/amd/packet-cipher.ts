import { hash } from 'node:crypto';
import { PAGE_SIZE } from '../units.js';
import { KeyStream } from './key-stream.js';
import type { TransportKeys } from './session.js';

const BLOCK = 16;
const WORD = 8;
/** Length of the block that SHA-256 works on. */
const HASH_BLOCK = 64;
const DIGEST = 32;
/** Bytes that are authenticated before the data. */
export const PREFIX = 29;
/** Where the key's inner pad (RFC 2104) stands, so that the data behind it and the prefix begins with a word. */
const INNER = 3;
const DATA = INNER + HASH_BLOCK + PREFIX;
const NOTHING = new Uint8Array(0);

/**
 * AES-128-CTR and HMAC-SHA-256 under the keys of one session, for many packets, of which one is worked on at a time. Objects of
 * the crypto library for each packet, and buffers for what it gives, would cost as much as the cipher and the hash.
 */
export class PacketCipher {
  readonly stream: KeyStream;
  /** The key's inner pad, the prefix, the data, what is authenticated behind it: one string for the hash. */
  private room = new Uint8Array(DATA + PAGE_SIZE + HASH_BLOCK);
  private words = new BigUint64Array(this.room.buffer);
  private before = this.room.subarray(DATA - PREFIX, DATA);
  private length = 0;
  /** The key's outer pad, then the inner digest. */
  private readonly outer = new Uint8Array(HASH_BLOCK + DIGEST);
  private readonly digest = new Uint8Array(DIGEST);

  constructor({ tek, tik }: TransportKeys) {
    this.stream = new KeyStream(tek);
    for (let at = 0; at < HASH_BLOCK; at++) {
      const byte = at < tik.length ? tik[at] : 0;
      this.room[INNER + at] = byte ^ 0x36;
      this.outer[at] = byte ^ 0x5c;
    }
  }

  /** What is authenticated before the data of the packet that is loaded, `PREFIX` bytes: for whoever asks for a MAC to fill in. */
  get prefix(): Uint8Array {
    return this.before;
  }

  /** The packet's data, until the next one is loaded. */
  get data(): Uint8Array {
    return this.room.subarray(DATA, DATA + this.length);
  }

  /** Takes a copy of the data of a packet, encrypted or not. */
  load(data: Uint8Array): void {
    this.reserve(data.length);
    this.room.set(data, DATA);
    this.length = data.length;
  }

  /** Encrypts or decrypts the data; the whole initialisation vector is the first counter block. */
  crypt(iv: Uint8Array): void {
    this.stream.add(iv, this.words, DATA / WORD, Math.ceil(this.length / BLOCK));
  }

  /**
   * HMAC-SHA-256 of the prefix, the data, and a suffix of at most `HASH_BLOCK` bytes.
   * @returns 32 bytes, until the next MAC
   */
  mac(suffix: Uint8Array = NOTHING): Uint8Array {
    const { room, outer, digest } = this;
    const end = DATA + this.length;
    room.set(suffix, end);
    setBytes(outer, HASH_BLOCK, sha256(room.subarray(INNER, end + suffix.length)));
    setBytes(digest, 0, sha256(outer));
    return digest;
  }

  private reserve(length: number): void {
    const needed = DATA + Math.ceil(length / BLOCK) * BLOCK + HASH_BLOCK;
    if (needed <= this.room.length) return;
    const room = new Uint8Array(needed);
    room.set(this.room.subarray(0, DATA));
    this.room = room;
    this.words = new BigUint64Array(room.buffer);
    this.before = room.subarray(DATA - PREFIX, DATA);
  }
}

/** As a string of one character for each byte: a buffer of its own for the digest costs more than a short one's hash. */
const sha256 = (bytes: Uint8Array): string => hash('sha256', bytes, 'binary');

function setBytes(bytes: Uint8Array, first: number, characters: string): void {
  for (let at = 0; at < characters.length; at++) bytes[first + at] = characters.charCodeAt(at);
}
