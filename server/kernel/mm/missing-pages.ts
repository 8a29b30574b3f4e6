import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure } from '../failure.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { PageSet } from './page-set.js';

/** Whoever has the contents of pages that are missing here. */
interface MissingPagesHandler {
  /** Somebody has touched pages for the first time since they are missing. Addresses of their first bytes. */
  wanted(addresses: readonly number[]): void;
  /** No page is missing any more: the last has come, or has been unmapped. */
  whole(): void;
}

/** What was written to a page before its contents have come: however often, it takes no more room than that. */
class Overlay {
  private readonly contents = new Uint8Array(PAGE_SIZE);
  /** 1 for each byte that was written. */
  private readonly written = new Uint8Array(PAGE_SIZE);

  write(offset: number, bytes: Uint8Array): void {
    this.contents.set(bytes, offset);
    this.written.fill(1, offset, offset + bytes.length);
  }

  applyTo(page: Uint8Array): void {
    const { contents, written } = this;
    for (let at = 0; at < PAGE_SIZE; at++) if (written[at] === 1) page[at] = contents[at] ?? 0;
  }
}

/**
 * Pages of an address space that are mapped, and whose contents somebody else still has: a userfaultfd registered with
 * UFFDIO_REGISTER_MODE_MISSING, with the handler in the place of the one who reads its events. Whoever touches a page waits
 * until `AddressSpace.fill` (UFFDIO_COPY) brings it. What the kernel or the process writes to one meanwhile does not wait: it
 * is kept, and goes over the contents when they come. A page that is unmapped, or given up with MADV_DONTNEED, is not missing
 * any more.
 */
export class MissingPages {
  /** By number: address / 4096. */
  private readonly pages = new PageSet();
  private readonly asked = new Set<number>();
  private readonly overlays = new Map<number, Overlay>();
  private readonly waiters = new Map<number, WaitQueue>();
  private lost = false;

  constructor(private readonly handler: MissingPagesHandler) {}

  get size(): number {
    return this.pages.size;
  }

  /** Pages that may still come. */
  get awaited(): number {
    return this.lost ? 0 : this.size;
  }

  has(page: number): boolean {
    return this.pages.has(page);
  }

  /** Whether any of pages [first, last) is missing. */
  overlaps(first: number, last: number): boolean {
    return this.pages.within(first, last).next().done !== true;
  }

  /** For `MissingMemory`: pages [first, last), of which nothing is present, are missing from now on. */
  add(first: number, last: number): void {
    this.pages.addRange(first, last);
  }

  /** A touch of a page that is missing: what the one who touches it gets instead of the page. */
  touch(page: number): Failure {
    if (this.lost)
      return new Failure('EFAULT', 'PAGE_LOST', 'mfill_atomic_pte_poison', { address: `0x${(page * PAGE_SIZE).toString(16)}` });
    this.want(page, page + 1);
    return new PageMissing(this, page);
  }

  /** Asks for those of pages [first, last) that are missing and have not been asked for. */
  want(first: number, last: number): void {
    if (this.lost) return;
    const addresses: number[] = [];
    for (const page of this.pages.within(first, last)) {
      if (this.asked.has(page)) continue;
      this.asked.add(page);
      addresses.push(page * PAGE_SIZE);
    }
    if (addresses.length > 0) this.handler.wanted(addresses);
  }

  /** Keeps what is written to a page that is missing. */
  store(page: number, offset: number, bytes: Uint8Array): void {
    let overlay = this.overlays.get(page);
    if (overlay === undefined) {
      overlay = new Overlay();
      this.overlays.set(page, overlay);
    }
    overlay.write(offset, bytes);
  }

  /** For `MissingMemory`: the contents of a page have come; what was written since goes over them. */
  arrived(page: number, contents: Uint8Array): void {
    this.overlays.get(page)?.applyTo(contents);
    this.drop(page);
    this.tellIfWhole();
  }

  /** For `MissingMemory`: pages [first, last) have been unmapped. */
  forget(first: number, last: number): void {
    const before = this.pages.size;
    for (const page of this.pages.within(first, last)) this.drop(page);
    if (this.pages.size < before) this.tellIfWhole();
  }

  /** For `MissingMemory`: nobody has the contents of what is left any more. From now on a touch is EFAULT. */
  lose(): void {
    this.lost = true;
    this.overlays.clear();
    for (const page of [...this.waiters.keys()]) this.wake(page);
  }

  /** For `PageMissing`: where those sleep who wait for a page. */
  queueOf(page: number): WaitQueue {
    let queue = this.waiters.get(page);
    if (queue === undefined) {
      queue = new WaitQueue();
      this.waiters.set(page, queue);
    }
    return queue;
  }

  /** Whether a page may still come. */
  isAwaited(page: number): boolean {
    return !this.lost && this.pages.has(page);
  }

  private drop(page: number): void {
    if (!this.pages.delete(page)) return;
    this.asked.delete(page);
    this.overlays.delete(page);
    this.wake(page);
  }

  private wake(page: number): void {
    const queue = this.waiters.get(page);
    this.waiters.delete(page);
    queue?.wakeAll();
  }

  private tellIfWhole(): void {
    if (this.pages.size === 0) this.handler.whole();
  }
}

/**
 * A touch of a page that is missing (`handle_userfault`, VM_FAULT_RETRY). It is no refusal, and nobody outside the kernel sees
 * it: whoever can sleep waits for the page and makes the access again.
 */
export class PageMissing extends Failure {
  constructor(
    private readonly owner: MissingPages,
    private readonly page: number,
  ) {
    super('EFAULT', 'PAGE_MISSING', 'handle_userfault', { address: `0x${(page * PAGE_SIZE).toString(16)}` });
  }

  /** It stays what it is, whoever passes it on. */
  override with(): this {
    return this;
  }

  /** The page is still to come. */
  get pending(): boolean {
    return this.owner.isAwaited(this.page);
  }

  /** Whoever touches it is about to touch all of [start, end): they need not be brought one by one. */
  alsoWant(start: number, end: number): void {
    this.owner.want(Math.floor(start / PAGE_SIZE), Math.ceil(end / PAGE_SIZE));
  }

  /** Keeps what is to be written to the page, so that the writer need not wait. */
  store(offset: number, bytes: Uint8Array): void {
    this.owner.store(this.page, offset, bytes);
  }

  /** Calls back when the page has come, or never will. @returns what takes that back */
  onArrival(callback: () => void): () => void {
    return this.owner.queueOf(this.page).addCallback(() => {
      callback();
      return false;
    }, false);
  }

  /**
   * Sleeps until the page has come, or never will: the access is to be made again then. EINTR: a signal came first. The real
   * kernel lets a copy to or from user memory fail with EFAULT then, and only for a signal that kills.
   */
  *arrival(): MightSleep<Failure | null> {
    while (this.pending) {
      const wake = yield { kind: 'interruptible', queue: this.owner.queueOf(this.page), site: 'handle_userfault' };
      if (wake === 'signal') return new Failure('EINTR', 'SIGNAL_PENDING', 'handle_userfault', this.details);
    }
    return null;
  }
}

/** Makes an access to user memory, and again after each page that it has had to wait for. */
export function* withMissingPages<T>(missing: PageMissing, again: () => MightSleep<T | Failure>): MightSleep<T | Failure> {
  let awaited: PageMissing = missing;
  for (;;) {
    const interrupted = yield* awaited.arrival();
    if (interrupted !== null) return interrupted;
    const result = yield* again();
    if (!(result instanceof PageMissing)) return result;
    awaited = result;
  }
}
