import { PAGE_SIZE } from '../units.js';

/** Tweaks are added 8 bytes at a time: V8 compiles exclusive or of 64-bit words to what the CPU has for it. */
const WORD_SIZE = 8;

/** A page on which the memory encryption engine converts blocks; each stands where it stands in its own page. */
interface WorkPage {
  readonly bytes: Uint8Array;
  /**
   * Takes copies of the tweaks of a page: of each block inside it (512 words of 64 bits, two for a block), and the two words
   * which all its blocks have beside their own.
   */
  loadTweaks(inPage: BigUint64Array, ofPage: BigUint64Array): void;
  /** Adds its tweak to each block from byte `begin` to byte `end`. */
  addTweaks(begin: number, end: number): void;
}

/**
 * Every conversion fills it anew and leaves nothing that another could see, so that one is enough for the engines of all hosts.
 * It is one, in a scope that is entered once, because only of such arrays V8 knows while it compiles where they are and how
 * long they are: a pass over a page takes 0.2 us, and three times that where each word is preceded by checks of both arrays.
 */
export const workPage: WorkPage = (() => {
  const words = new BigUint64Array(PAGE_SIZE / WORD_SIZE);
  const tweaks = new BigUint64Array(PAGE_SIZE / WORD_SIZE);
  const common = new BigUint64Array(2);
  return {
    bytes: new Uint8Array(words.buffer),
    loadTweaks: (inPage, ofPage) => {
      tweaks.set(inPage);
      common[0] = ofPage[0];
      common[1] = ofPage[1];
    },
    addTweaks: (begin, end) => {
      const low = common[0];
      const high = common[1];
      const last = end / WORD_SIZE;
      for (let word = begin / WORD_SIZE; word < last; word += 2) {
        words[word] ^= tweaks[word] ^ low;
        words[word + 1] ^= tweaks[word + 1] ^ high;
      }
    },
  };
})();
