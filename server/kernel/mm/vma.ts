import { PAGE_SIZE } from '../../hardware/units.js';
import type { MemoryObject, ObjectMapping } from './memory-object.js';

const MMAP_TOP = 0x7fff_f7ff_f000;
const MMAP_BOTTOM = 0x1_0000;

export interface Protection {
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
}

/** `struct vm_area_struct`: [start, end) of an address space, and what stands behind it. */
export interface Vma {
  readonly start: number;
  readonly end: number;
  readonly protection: Protection;
  readonly shared: boolean;
  /** Null: private anonymous memory. */
  readonly object: MemoryObject | null;
  /** Page index in the object of the first page. */
  readonly firstPage: number;
  /** Tells the object where it is mapped. */
  readonly mapping: ObjectMapping | null;
}

/** On x86 whatever can be accessed at all can be read. */
export const mayRead = ({ protection: { read, write, execute } }: Vma): boolean => read || write || execute;

/** `mm_struct::mm_mt`: the areas of an address space, in ascending order. */
export class Vmas {
  private areas: Vma[] = [];

  /** @param unmapPages an object takes pages back that lie in [start, end) */
  constructor(private readonly unmapPages: (start: number, end: number) => void) {}

  [Symbol.iterator](): Iterator<Vma> {
    return this.areas.values();
  }

  /** Bytes in all. */
  get bytes(): number {
    return this.areas.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  overlapping(start: number, end: number): Vma[] {
    return this.areas.filter((area) => area.start < end && area.end > start);
  }

  /** `vma_lookup`. */
  find(address: number): Vma | undefined {
    let low = 0;
    let high = this.areas.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const area = this.areas[middle];
      if (area === undefined) return undefined;
      if (address < area.start) high = middle;
      else if (address >= area.end) low = middle + 1;
      else return area;
    }
    return undefined;
  }

  /** First address in [start, end) that no area covers, or `end`. */
  firstHole(start: number, end: number): number {
    let address = start;
    for (const area of this.areas) {
      if (area.end <= address) continue;
      if (area.start > address || address >= end) break;
      address = area.end;
    }
    return Math.min(address, end);
  }

  /** Highest gap of `length` bytes below the mmap base, as the kernel's top-down search; null: there is none. */
  findGap(length: number): number | null {
    let top = MMAP_TOP;
    for (let i = this.areas.length - 1; i >= 0; i--) {
      const area = this.areas[i];
      if (area === undefined || area.start >= top) continue;
      if (area.end <= top - length) break;
      top = area.start;
    }
    return top - length >= MMAP_BOTTOM ? top - length : null;
  }

  insert(area: Omit<Vma, 'mapping'>): void {
    const index = this.areas.findIndex((other) => other.start > area.start);
    this.areas.splice(index < 0 ? this.areas.length : index, 0, { ...area, mapping: this.attach(area) });
  }

  /** Replaces what lies in [start, end) by what `change` makes of it (null: nothing), and splits areas at the borders. */
  carve(start: number, end: number, change: (area: Vma) => Vma | null): void {
    const touched = this.overlapping(start, end);
    this.areas = this.areas.filter((area) => !touched.includes(area));
    for (const area of touched) {
      const cut = (from: number, to: number): Vma => ({
        ...area,
        start: from,
        end: to,
        firstPage: area.firstPage + (from - area.start) / PAGE_SIZE,
      });
      if (area.start < start) this.insert(cut(area.start, start));
      const changed = change(cut(Math.max(area.start, start), Math.min(area.end, end)));
      if (changed !== null) this.insert(changed);
      if (area.end > end) this.insert(cut(end, area.end));
      detach(area);
    }
  }

  clear(): void {
    for (const area of this.areas) detach(area);
    this.areas = [];
  }

  private attach({ object, start, end, firstPage }: Omit<Vma, 'mapping'>): ObjectMapping | null {
    if (object === null) return null;
    const mapping: ObjectMapping = {
      unmapPages: (first, last) => {
        const from = Math.max(first, firstPage) - firstPage;
        const to = Math.min(last - firstPage, (end - start) / PAGE_SIZE);
        if (from < to) this.unmapPages(start + from * PAGE_SIZE, start + to * PAGE_SIZE);
      },
    };
    object.attach(mapping);
    return mapping;
  }
}

const detach = ({ object, mapping }: Vma): void => {
  if (object !== null && mapping !== null) object.detach(mapping);
};
