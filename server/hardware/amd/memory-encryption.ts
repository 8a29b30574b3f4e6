import { createCipheriv, createDecipheriv } from 'node:crypto';
import type { MemoryKey } from '../dram.js';
import type { Entropy } from '../entropy.js';
import { type Hpa, offsetInPage, PAGE_SIZE } from '../units.js';
import { workPage } from './work-page.js';

/** Bytes that one AES operation of the engine covers, and the granularity of every firmware command on guest memory. */
export const BLOCK_SIZE = 16;

/** The constant t_i by which address bit i tweaks a block: 16 bytes as two words, in the host's byte order. */
export type TweakConstants = ReadonlyMap<number, BigUint64Array>;

const FIRST_TWEAK_BIT = 4;
const LAST_TWEAK_BIT = 50;
const WORDS_PER_BLOCK = 2;
const BLOCKS_PER_PAGE = PAGE_SIZE / BLOCK_SIZE;

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
  const constants = new Map<number, BigUint64Array>();
  for (let bit = FIRST_TWEAK_BIT; bit <= LAST_TWEAK_BIT; bit++) {
    constants.set(bit, new BigUint64Array(entropy.bytes(BLOCK_SIZE).buffer));
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
  readonly inPage = new BigUint64Array(BLOCKS_PER_PAGE * WORDS_PER_BLOCK);
  /** The constants, in the order of their address bits; zeros for a bit that does not tweak. */
  private readonly constants = new BigUint64Array((LAST_TWEAK_BIT + 1) * WORDS_PER_BLOCK);
  private readonly page = new BigUint64Array(WORDS_PER_BLOCK);

  constructor(constants: TweakConstants) {
    for (const [bit, constant] of constants) this.constants.set(constant, bit * WORDS_PER_BLOCK);
    for (let block = 0; block < BLOCKS_PER_PAGE; block++) {
      const first = block * WORDS_PER_BLOCK;
      this.sum(this.inPage.subarray(first, first + WORDS_PER_BLOCK), block * BLOCK_SIZE, 0);
    }
  }

  /**
   * The tweak that all blocks of a page have beside their own inside it.
   * @returns two words, until the next call
   */
  ofPage(base: number): BigUint64Array {
    this.page[0] = 0n;
    this.page[1] = 0n;
    this.sum(this.page, base >>> 0, 0);
    this.sum(this.page, Math.floor(base / 2 ** 32), 32);
    return this.page;
  }

  /** Adds the constants of up to 32 address bits, of which bit 0 is `firstBit` of the address. */
  private sum(tweak: BigUint64Array, bits: number, firstBit: number): void {
    for (let rest = bits; rest !== 0; rest &= rest - 1) {
      const at = (firstBit + 31 - Math.clz32(rest & -rest)) * WORDS_PER_BLOCK;
      tweak[0] ^= this.constants[at];
      tweak[1] ^= this.constants[at + 1];
    }
  }
}

class XexKey implements EncryptionKey {
  private ciphers: { readonly seal: Ecb; readonly open: Ecb } | null = null;

  constructor(
    readonly name: string,
    private readonly key: Uint8Array,
    private readonly tweaks: Tweaks,
  ) {}

  sealPage(address: Hpa, bytes: Uint8Array): void {
    this.convertInPage(this.schedule().seal, address, 0, bytes);
  }

  openPage(address: Hpa, bytes: Uint8Array): void {
    this.convertInPage(this.schedule().open, address, 0, bytes);
  }

  seal(address: Hpa, bytes: Uint8Array): void {
    this.convert(this.schedule().seal, address, bytes);
  }

  open(address: Hpa, bytes: Uint8Array): void {
    this.convert(this.schedule().open, address, bytes);
  }

  private convert(ecb: Ecb, address: Hpa, bytes: Uint8Array): void {
    if (address % BLOCK_SIZE !== 0 || bytes.length % BLOCK_SIZE !== 0) throw new Error('the engine works on whole blocks');
    for (let at = 0; at < bytes.length; ) {
      const begin = offsetInPage(address + at);
      const part = bytes.subarray(at, at + PAGE_SIZE - begin);
      this.convertInPage(ecb, address + at - begin, begin, part);
      at += part.length;
    }
  }

  /** Blocks of the page at address `page`, of which the first begins at its byte `begin`. */
  private convertInPage(ecb: Ecb, page: number, begin: number, bytes: Uint8Array): void {
    const { tweaks } = this;
    const blocks = bytes.length === PAGE_SIZE ? workPage.bytes : workPage.bytes.subarray(begin, begin + bytes.length);
    const ofPage = tweaks.ofPage(page);
    workPage.loadTweaks(tweaks.inPage);
    blocks.set(bytes);
    workPage.addTweaks(ofPage);
    blocks.set(ecb.update(blocks));
    workPage.addTweaks(ofPage);
    bytes.set(blocks);
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
