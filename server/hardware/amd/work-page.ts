import { PAGE_SIZE } from '../units.js';

/** Tweaks are added 8 bytes at a time: V8 compiles exclusive or of 64-bit words to what the CPU has for it. */
const WORD_SIZE = 8;

/** A page on which the memory encryption engine converts blocks; each stands where it stands in its own page. */
interface WorkPage {
  readonly bytes: Uint8Array;
  /** Makes `addTweaks` add the tweaks that an engine has for the blocks inside a page: 512 words of 64 bits, two for a block. */
  loadTweaks(inPage: BigUint64Array): void;
  /** Adds its tweak to each block of the page: its own, and the two words which all blocks of the page have beside it. */
  addTweaks(ofPage: BigUint64Array): void;
}

/**
 * Every conversion fills what it uses of it anew and leaves nothing that another could see, so that one is enough for the engines
 * of all hosts: no result depends on who had it before. It is one, in a scope that is entered once, because only of such arrays V8
 * knows while it compiles where they are and how long they are. With one for each host a pass was as fast as long as the process
 * had one host, and took 3.7 times as long from the second on; in an object it took 2.8 times as long in any case. A pass goes
 * through the whole page, also for a few blocks: bounds that come from an address would make it count in floating point. It takes
 * 0.2 us, and three times that where each word is preceded by checks of both arrays.
 */
export const workPage: WorkPage = (() => {
  // A constant of this scope, for V8 looks up imported ones in each turn of the loop.
  const words = PAGE_SIZE / WORD_SIZE;
  const page = new BigUint64Array(words);
  const tweaks = new BigUint64Array(words);
  /** Whose copy `tweaks` is: most pages are converted by the engine that has converted the one before. */
  let loaded: BigUint64Array | null = null;
  return {
    bytes: new Uint8Array(page.buffer),
    loadTweaks: (inPage) => {
      if (inPage === loaded) return;
      tweaks.set(inPage);
      loaded = inPage;
    },
    addTweaks: (ofPage) => {
      const low = ofPage[0];
      const high = ofPage[1];
      for (let word = 0; word < words; word += 2) {
        page[word] ^= tweaks[word] ^ low;
        page[word + 1] ^= tweaks[word + 1] ^ high;
      }
    },
  };
})();
