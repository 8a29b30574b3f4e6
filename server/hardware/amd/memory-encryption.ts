import { createCipheriv, createDecipheriv } from 'node:crypto';
import type { MemoryKey } from '../dram.js';
import type { Entropy } from '../entropy.js';
import { type Hpa, PAGE_SIZE } from '../units.js';

/** Bytes that one AES operation of the engine covers, and the granularity of every firmware command on guest memory. */
export const BLOCK_SIZE = 16;

/** The constant t_i by which address bit i tweaks a block: 16 bytes as two words, in the host's byte order. */
export type TweakConstants = ReadonlyMap<number, BigUint64Array>;

const FIRST_TWEAK_BIT = 4;
const LAST_TWEAK_BIT = 50;
/** Tweaks are added 8 bytes at a time: V8 compiles exclusive or of 64-bit words to what the CPU has for it. */
const WORD_SIZE = 8;
const WORDS_PER_BLOCK = BLOCK_SIZE / WORD_SIZE;
const WORDS_PER_PAGE = PAGE_SIZE / WORD_SIZE;

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
  private readonly inPage = new BigUint64Array(WORDS_PER_PAGE);
  /** Tweak of the page that was converted last: a page is tweaked twice for each conversion. */
  private readonly page = new BigUint64Array(WORDS_PER_BLOCK);
  private base = 0;

  /** The constants, in the order of their address bits; zeros for a bit that does not tweak. */
  private readonly constants = new BigUint64Array((LAST_TWEAK_BIT + 1) * WORDS_PER_BLOCK);

  constructor(constants: TweakConstants) {
    for (const [bit, constant] of constants) this.constants.set(constant, bit * WORDS_PER_BLOCK);
    for (let word = 0; word < WORDS_PER_PAGE; word += WORDS_PER_BLOCK)
      this.sum(this.inPage.subarray(word, word + WORDS_PER_BLOCK), word * WORD_SIZE, 0);
  }

  /** Writes `from` with the tweak of every block added to `to`; both are as long, and stand at `address` and on. */
  add(address: number, from: BigUint64Array, to: BigUint64Array): void {
    let first = (address % PAGE_SIZE) / WORD_SIZE;
    let base = address - (address % PAGE_SIZE);
    for (let done = 0; done < from.length; ) {
      this.moveTo(base);
      const end = Math.min(from.length, done + WORDS_PER_PAGE - first);
      addTweaks(from, to, done, end, this.inPage, first - done, this.page[0], this.page[1]);
      done = end;
      base += PAGE_SIZE;
      first = 0;
    }
  }

  private moveTo(base: number): void {
    if (base === this.base) return;
    this.page.fill(0n);
    this.sum(this.page, base >>> 0, 0);
    this.sum(this.page, Math.floor(base / 2 ** 32), 32);
    this.base = base;
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

/** Words `begin` to `end`; the tweak of each is the sum of its page's and of its own inside the page, in one pass for both. */
function addTweaks(
  from: BigUint64Array,
  to: BigUint64Array,
  begin: number,
  end: number,
  inPage: BigUint64Array,
  shift: number,
  low: bigint,
  high: bigint,
): void {
  for (let word = begin; word < end; word += WORDS_PER_BLOCK) {
    to[word] = from[word] ^ inPage[word + shift] ^ low;
    to[word + 1] = from[word + 1] ^ inPage[word + shift + 1] ^ high;
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
    // Words must be aligned; those of a page of DRAM are, unless it has come with a message from another host.
    const aligned = bytes.byteOffset % WORD_SIZE === 0 ? bytes : Uint8Array.from(bytes);
    const words = wordsOf(aligned);
    this.tweaks.add(address, words, words);
    this.tweaks.add(address, wordsOf(ecb.update(aligned)), words);
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

const wordsOf = (bytes: Uint8Array): BigUint64Array =>
  new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.length / WORD_SIZE);

/** One direction of AES-128 without chaining: an object that is never finished, so that its key schedule is made once. */
interface Ecb {
  update(data: Uint8Array): Uint8Array;
}
