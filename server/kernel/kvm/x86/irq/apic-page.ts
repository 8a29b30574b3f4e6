import { APIC_ISR_NR, KVM_APIC_REG_SIZE } from './apic-registers.js';

/** The first KiB of an APIC's page by words: a register is the first of four; ISR, TMR and IRR are bitmaps of 256 vectors. */
export class ApicPage {
  readonly words = new Uint32Array(KVM_APIC_REG_SIZE / 4);

  get(offset: number): number {
    return this.words[offset >> 2] ?? 0;
  }

  set(offset: number, value: number): void {
    this.words[offset >> 2] = value;
  }

  /** @param bitmap offset of ISR, TMR or IRR */
  testVector(bitmap: number, vector: number): boolean {
    return ((this.get(bitmap + ((vector >> 5) << 4)) >>> (vector & 31)) & 1) === 1;
  }

  writeVector(bitmap: number, vector: number, set: boolean): void {
    const offset = bitmap + ((vector >> 5) << 4);
    const bit = 1 << (vector & 31);
    this.set(offset, set ? this.get(offset) | bit : this.get(offset) & ~bit);
  }

  /** `apic_find_highest_vector`; -1: none. */
  highestVector(bitmap: number): number {
    for (let word = APIC_ISR_NR - 1; word >= 0; word--) {
      const bits = this.get(bitmap + (word << 4));
      if (bits !== 0) return (word << 5) + 31 - Math.clz32(bits);
    }
    return -1;
  }

  /** The vectors of one bitmap. */
  vectors(bitmap: number): Set<number> {
    const found = new Set<number>();
    for (let vector = 0; vector < 32 * APIC_ISR_NR; vector++) if (this.testVector(bitmap, vector)) found.add(vector);
    return found;
  }

  /** Empties one bitmap. */
  clearVectors(bitmap: number): void {
    for (let word = 0; word < APIC_ISR_NR; word++) this.set(bitmap + (word << 4), 0);
  }
}
