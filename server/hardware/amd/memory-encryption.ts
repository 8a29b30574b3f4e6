import { createCipheriv, createDecipheriv } from 'node:crypto';
import type { MemoryKey } from '../dram.js';
import type { Entropy } from '../entropy.js';
import { type Hpa, PAGE_SIZE } from '../units.js';

/** Bytes that one AES operation of the engine covers, and the granularity of every firmware command on guest memory. */
export const BLOCK_SIZE = 16;

/** The constant t_i by which address bit i tweaks a block: four 32-bit words, in the host's byte order. */
export type TweakConstants = ReadonlyMap<number, Int32Array>;

const FIRST_TWEAK_BIT = 4;
const LAST_TWEAK_BIT = 50;
const WORDS_PER_BLOCK = 4;
const WORDS_PER_PAGE = PAGE_SIZE / 4;

/**
 * The memory encryption engine in the memory controllers: AES-128 in XEX mode, C = AES(M xor T(p)) xor T(p), where T(p) is the
 * sum of one constant for each address bit that is set (SEVurity; sev-firmware.md 4.3). The engine has neither integrity
 * nor freshness: the same plaintext at the same address under the same key is the same ciphertext.
 */
export interface MemoryEncryptionEngine {
  /** A key of 16 bytes as the controllers hold it. Its AES schedule is computed when a page is first converted. */
  createKey(name: string, key: Uint8Array): EncryptionKey;
}

/** An AES-128-XEX key. Addresses and lengths are multiples of 16 bytes. */
export interface EncryptionKey extends MemoryKey {
  /** Encrypts `bytes` in place as the cells from `address` on would hold them. */
  seal(address: Hpa, bytes: Uint8Array): void;
  /** The inverse of `seal`. */
  open(address: Hpa, bytes: Uint8Array): void;
}

/** An engine whose tweak constants are random at each boot, as on parts later than the first EPYC. */
export function createMemoryEncryptionEngine(entropy: Entropy): MemoryEncryptionEngine {
  const constants = new Map<number, Int32Array>();
  for (let bit = FIRST_TWEAK_BIT; bit <= LAST_TWEAK_BIT; bit++) {
    constants.set(bit, new Int32Array(entropy.bytes(BLOCK_SIZE).buffer));
  }
  return createMemoryEncryptionEngineWith(constants);
}

/** An engine with given tweak constants; address bits without one do not tweak. */
export function createMemoryEncryptionEngineWith(constants: TweakConstants): MemoryEncryptionEngine {
  const tweaks = new Tweaks(constants);
  return { createKey: (name, key) => new XexKey(name, key, tweaks) };
}

class Tweaks {
  /** Tweak of each block of the page at address 0. */
  private readonly inPage = new Int32Array(WORDS_PER_PAGE);
  /** Tweak of each block of the page at `base`: a page is tweaked twice for each conversion. */
  private readonly page = new Int32Array(WORDS_PER_PAGE);
  private base = 0;

  constructor(private readonly constants: TweakConstants) {
    for (let offset = 0; offset < PAGE_SIZE; offset += BLOCK_SIZE) this.inPage.set(this.sum(offset), offset / 4);
    this.page.set(this.inPage);
  }

  /** XORs the tweak of every block of `words`, which stand at `address` and on. */
  apply(address: number, words: Int32Array): void {
    let offset = (address % PAGE_SIZE) / 4;
    let base = address - (address % PAGE_SIZE);
    for (let done = 0; done < words.length; ) {
      const { page } = this.moveTo(base);
      if (offset === 0 && words.length === WORDS_PER_PAGE) {
        applyToPage(words, page);
        return;
      }
      const end = Math.min(words.length, done + WORDS_PER_PAGE - offset);
      for (; done < end; done += WORDS_PER_BLOCK, offset += WORDS_PER_BLOCK) {
        words[done] ^= page[offset];
        words[done + 1] ^= page[offset + 1];
        words[done + 2] ^= page[offset + 2];
        words[done + 3] ^= page[offset + 3];
      }
      base += PAGE_SIZE;
      offset = 0;
    }
  }

  private moveTo(base: number): this {
    if (base === this.base) return this;
    const [w0, w1, w2, w3] = this.sum(base);
    const { inPage, page } = this;
    for (let word = 0; word < WORDS_PER_PAGE; word += WORDS_PER_BLOCK) {
      page[word] = inPage[word] ^ w0;
      page[word + 1] = inPage[word + 1] ^ w1;
      page[word + 2] = inPage[word + 2] ^ w2;
      page[word + 3] = inPage[word + 3] ^ w3;
    }
    this.base = base;
    return this;
  }

  private sum(address: number): Int32Array {
    const tweak = new Int32Array(WORDS_PER_BLOCK);
    this.add(tweak, address >>> 0, 0);
    this.add(tweak, Math.floor(address / 2 ** 32), 32);
    return tweak;
  }

  /** Adds the constants of up to 32 address bits, of which bit 0 is `firstBit` of the address. */
  private add(tweak: Int32Array, bits: number, firstBit: number): void {
    for (let rest = bits; rest !== 0; rest &= rest - 1) {
      const constant = this.constants.get(firstBit + 31 - Math.clz32(rest & -rest));
      if (constant === undefined) continue;
      for (let word = 0; word < WORDS_PER_BLOCK; word++) tweak[word] ^= constant[word];
    }
  }
}

/** Both are whole pages: the loop that nearly every conversion runs, as plain as it can be. */
function applyToPage(words: Int32Array, page: Int32Array): void {
  for (let word = 0; word < WORDS_PER_PAGE; word++) words[word] ^= page[word];
}

class XexKey implements EncryptionKey {
  private ciphers: { readonly seal: Ecb; readonly open: Ecb } | null = null;

  constructor(
    readonly name: string,
    private readonly key: Uint8Array,
    private readonly tweaks: Tweaks,
  ) {}

  sealPage(address: Hpa, bytes: Uint8Array): void {
    this.seal(address, bytes);
  }

  openPage(address: Hpa, bytes: Uint8Array): void {
    this.open(address, bytes);
  }

  seal(address: Hpa, bytes: Uint8Array): void {
    this.convert(this.schedule().seal, address, bytes);
  }

  open(address: Hpa, bytes: Uint8Array): void {
    this.convert(this.schedule().open, address, bytes);
  }

  private convert(ecb: Ecb, address: Hpa, bytes: Uint8Array): void {
    if (address % BLOCK_SIZE !== 0 || bytes.length % BLOCK_SIZE !== 0) throw new Error('the engine works on whole blocks');
    // The words must be aligned to be XORed as 32-bit integers; pages of DRAM always are.
    const aligned = bytes.byteOffset % 4 === 0 ? bytes : Uint8Array.from(bytes);
    const words = new Int32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
    this.tweaks.apply(address, words);
    aligned.set(ecb.update(aligned));
    this.tweaks.apply(address, words);
    if (aligned !== bytes) bytes.set(aligned);
  }

  private schedule(): { readonly seal: Ecb; readonly open: Ecb } {
    this.ciphers ??= {
      seal: createCipheriv('aes-128-ecb', this.key, null).setAutoPadding(false),
      open: createDecipheriv('aes-128-ecb', this.key, null).setAutoPadding(false),
    };
    return this.ciphers;
  }
}

/** One direction of AES-128 without chaining: an object that is never finished, so that its key schedule is made once. */
interface Ecb {
  update(data: Uint8Array): Uint8Array;
}
