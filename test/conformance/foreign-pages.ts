import type { Dram } from '../../server/hardware/dram.js';
import { PAGE_SIZE, type Pfn } from '../../server/hardware/units.js';
import { type Failure, failed, type Result } from '../../server/kernel/failure.js';
import { type AddressSpace, TASK_SIZE } from '../../server/kernel/mm/address-space.js';
import { type Page, PageAllocator } from '../../server/kernel/mm/page.js';
import type { PageProvider } from '../../server/kernel/mm/page-provider.js';
import type { OwnMemory } from './backend-in-process.js';

/** A page as the process has it, and what both sides had when they last agreed. */
interface Twin {
  readonly own: Uint8Array;
  readonly agreed: Uint8Array;
}

const inPage = (address: number): number => address % PAGE_SIZE;

/** Carries over what has changed since both agreed: the other bytes may have changed on the other side. */
const merge = (from: Uint8Array, agreed: Uint8Array, to: () => Uint8Array): void => {
  if (Buffer.compare(from, agreed) === 0) return;
  const target = to();
  for (const [at, byte] of from.entries()) {
    if (byte === agreed[at]) continue;
    target[at] = byte;
    agreed[at] = byte;
  }
};

/**
 * Memory of a process outside: it loads from and stores to pages of its own, which are the kernel's for as long as a
 * call lasts. What either writes in between reaches the other where the next call begins or ends, and no earlier.
 */
export class ForeignPages extends PageAllocator implements PageProvider, OwnMemory {
  /** Of the pages that the process has touched. */
  private readonly twins = new Map<Page, Twin>();
  private readonly given = new WeakSet<Page>();

  constructor(kernelPages: PageAllocator, dram: Dram) {
    super(dram);
    this.onFree = (frame) => kernelPages.onFree(frame);
    this.onCopy = (from, mm) => kernelPages.onCopy(from, mm);
  }

  override allocate(): Result<Page> {
    const page = super.allocate();
    if (!failed(page)) this.given.add(page);
    return page;
  }

  override page(bare: Pfn): Page {
    const page = super.page(bare);
    this.given.add(page);
    return page;
  }

  override release(page: Page): void {
    this.twins.delete(page);
    super.release(page);
  }

  enter(): void {
    for (const [{ frame }, { own, agreed }] of this.twins) merge(own, agreed, () => frame.viewForWrite(null));
  }

  leave(): void {
    for (const [{ frame }, { own, agreed }] of this.twins) merge(frame.view(null), agreed, () => own);
  }

  load(mm: AddressSpace, address: bigint, length: number): Result<Uint8Array> {
    const data = new Uint8Array(length);
    const failure = this.touch(mm, address, length, false, (bytes, done) => data.set(bytes, done));
    return failure ?? data;
  }

  store(mm: AddressSpace, address: bigint, bytes: Uint8Array): Failure | null {
    return this.touch(mm, address, bytes.length, true, (own, done) => own.set(bytes.subarray(done, done + own.length)));
  }

  /** Goes through what the process has at an address, page by page. */
  private touch(
    mm: AddressSpace,
    address: bigint,
    length: number,
    write: boolean,
    each: (own: Uint8Array, done: number) => void,
  ): Failure | null {
    const start = Number(address);
    for (let done = 0; done < length; ) {
      const at = Math.min(start + done, TASK_SIZE);
      const page = mm.fault(at, write);
      if (failed(page)) return page;
      const own = this.ownBytes(page).subarray(inPage(at), inPage(at) + length - done);
      each(own, done);
      done += own.length;
    }
    return null;
  }

  /** What belongs to the kernel and is only mapped, such as kvm_run, has no other bytes than the kernel's. */
  private ownBytes(page: Page): Uint8Array {
    if (!this.given.has(page)) return page.frame.viewForWrite(null);
    let twin = this.twins.get(page);
    if (twin === undefined) {
      twin = { own: page.frame.view(null).slice(), agreed: page.frame.view(null).slice() };
      this.twins.set(page, twin);
    }
    return twin.own;
  }
}
