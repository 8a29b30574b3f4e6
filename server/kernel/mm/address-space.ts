import { PAGE_SIZE, type Uva, uva } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { UserCopy } from '../fs/ioctl-arg.js';
import type { MemoryObject } from './memory-object.js';
import { MissingMemory } from './missing-memory.js';
import { type MissingPages, PageMissing } from './missing-pages.js';
import type { MmuNotifier, MmuNotifierEvent } from './mmu-notifier.js';
import type { Page } from './page.js';
import { PageFaults, segv } from './page-faults.js';
import type { PageProvider } from './page-provider.js';
import { PageSnapshot } from './page-snapshot.js';
import { type PageRun, PageTable, pageOf } from './page-table.js';
import { mayRead, type Protection, type Vma, Vmas } from './vma.js';

/** End of the user half: the last page below 2^47 is not the user's (TASK_SIZE_MAX). */
export const TASK_SIZE = 0x7fff_ffff_f000;

export interface MapRequest {
  readonly length: number;
  readonly protection: Protection;
  readonly shared: boolean;
  readonly object: MemoryObject | null;
  /** Byte offset in the object, page aligned. */
  readonly offset: number;
  /** MAP_FIXED; what was mapped there goes. */
  readonly fixedAddress?: number;
}

/** From so many bytes on, what is written to untouched memory is stored in one piece. */
const STORED_MIN = 16 * PAGE_SIZE;

/** Told what the process, or the kernel for it, has written to its memory; both are addresses. */
export type WriteWatcher = (start: number, end: number) => void;

/**
 * `struct mm_struct`: the memory of one process. Everything in the kernel that reaches user memory goes through here,
 * and keeps no page beyond a wait unless it has pinned it.
 */
export class AddressSpace implements UserCopy {
  private readonly areas = new Vmas((start, end) => this.zap(start, end, 'clear', true));
  private readonly ptes: PageTable;
  private readonly notifiers = new Set<MmuNotifier>();
  private readonly writeWatchers = new Set<WriteWatcher>();
  private readonly missing: MissingMemory;
  private readonly faults: PageFaults;
  private exited = false;

  constructor(readonly provider: PageProvider) {
    this.ptes = new PageTable(provider);
    this.missing = new MissingMemory(provider);
    this.faults = new PageFaults(this.areas, this.ptes, this.missing, provider, (pageNumber, page) => {
      this.notify(pageNumber * PAGE_SIZE, (pageNumber + 1) * PAGE_SIZE, 'clear');
      provider.copied?.(page.frame, this);
    });
  }

  registerNotifier(notifier: MmuNotifier): void {
    this.notifiers.add(notifier);
  }

  unregisterNotifier(notifier: MmuNotifier): void {
    this.notifiers.delete(notifier);
  }

  watchWrites(watcher: WriteWatcher): void {
    this.writeWatchers.add(watcher);
  }

  unwatchWrites(watcher: WriteWatcher): void {
    this.writeWatchers.delete(watcher);
  }

  /** Bytes of mappings and number of pages that are present. */
  get usage(): { mapped: number; present: number } {
    return { mapped: this.areas.bytes, present: this.ptes.size };
  }

  // -- mappings -----------------------------------------------------------------------------------------------------

  /** `do_mmap` of an object that the file has agreed to map, or of anonymous memory. Returns the address. */
  mmap(request: MapRequest): Result<Uva> {
    if (this.exited) return new Failure('ESRCH', 'PROCESS_EXITED', 'do_mmap');
    const length = Math.ceil(request.length / PAGE_SIZE) * PAGE_SIZE;
    if (request.length <= 0 || !Number.isSafeInteger(length))
      return new Failure('EINVAL', 'MMAP_LENGTH', 'do_mmap', { field: 'length', given: String(request.length) });
    if (request.offset % PAGE_SIZE !== 0)
      return new Failure('EINVAL', 'MMAP_OFFSET_UNALIGNED', 'ksys_mmap_pgoff', {
        field: 'offset',
        given: String(request.offset),
      });
    const start = request.fixedAddress ?? this.areas.findGap(length);
    if (start === null || length > TASK_SIZE) return new Failure('ENOMEM', 'ADDRESS_SPACE_FULL', 'get_unmapped_area');
    if (start % PAGE_SIZE !== 0) return new Failure('EINVAL', 'MMAP_ADDRESS_UNALIGNED', 'do_mmap', { field: 'address' });
    if (start < 0 || start + length > TASK_SIZE)
      return new Failure('ENOMEM', 'MMAP_ADDRESS_RANGE', 'get_unmapped_area', { field: 'address' });
    if (request.fixedAddress !== undefined) this.munmap(start, length);
    this.areas.insert({
      start,
      end: start + length,
      protection: request.protection,
      shared: request.shared,
      object: request.object,
      firstPage: request.offset / PAGE_SIZE,
    });
    return uva(start);
  }

  /** True if something is mapped in [start, end). */
  overlaps(start: number, end: number): boolean {
    return this.areas.overlapping(start, end).length > 0;
  }

  /** True if all of [start, end) is mapped. */
  covers(start: number, end: number): boolean {
    return this.areas.firstHole(start, end) >= end;
  }

  munmap(start: number, length: number): Failure | null {
    const end = start + Math.ceil(length / PAGE_SIZE) * PAGE_SIZE;
    if (start % PAGE_SIZE !== 0 || length <= 0 || start < 0 || end > TASK_SIZE)
      return new Failure('EINVAL', 'MUNMAP_RANGE', 'do_vmi_munmap', { start: `0x${start.toString(16)}`, length: String(length) });
    this.carve(start, end, () => null, 'unmap');
    return null;
  }

  /** ENOMEM if part of the range is not mapped, as in the real call; what comes before the hole has changed then. */
  mprotect(start: number, length: number, protection: Protection): Failure | null {
    const end = start + Math.ceil(length / PAGE_SIZE) * PAGE_SIZE;
    if (start % PAGE_SIZE !== 0)
      return new Failure('EINVAL', 'MPROTECT_ADDRESS_UNALIGNED', 'do_mprotect_pkey', { field: 'address' });
    if (length === 0) return null;
    const hole = this.areas.firstHole(start, end);
    this.carve(start, Math.min(end, hole), (area) => ({ ...area, protection }), 'protection');
    return hole < end
      ? new Failure('ENOMEM', 'RANGE_NOT_MAPPED', 'do_mprotect_pkey', { address: `0x${hole.toString(16)}` })
      : null;
  }

  /** MADV_DONTNEED: private pages are forgotten, shared ones are only unmapped. ENOMEM for a hole. */
  dontNeed(start: number, length: number): Failure | null {
    if (start % PAGE_SIZE !== 0) return new Failure('EINVAL', 'MADVISE_ADDRESS_UNALIGNED', 'do_madvise', { field: 'address' });
    const end = start + Math.ceil(length / PAGE_SIZE) * PAGE_SIZE;
    this.zap(start, end, 'clear');
    return this.areas.firstHole(start, end) < end ? new Failure('ENOMEM', 'RANGE_NOT_MAPPED', 'do_madvise') : null;
  }

  /**
   * MADV_REMOVE: punches a hole into what is mapped. EINVAL for private anonymous memory, EACCES for a mapping through
   * which the object cannot be written, EOPNOTSUPP for an object without holes, ENOMEM for a hole in the mapping.
   */
  remove(start: number, length: number): Failure | null {
    const end = start + Math.ceil(length / PAGE_SIZE) * PAGE_SIZE;
    for (const area of this.areas.overlapping(start, end)) {
      if (area.object === null) return new Failure('EINVAL', 'MEMORY_WITHOUT_FILE', 'madvise_remove');
      if (!area.shared || !area.protection.write) return new Failure('EACCES', 'MAPPING_NOT_WRITABLE', 'madvise_remove');
      if (area.object.punch === undefined) return new Failure('EOPNOTSUPP', 'FALLOCATE_UNSUPPORTED', 'madvise_remove');
      const first = area.firstPage + pageOf(Math.max(start, area.start) - area.start);
      area.object.punch(first, first + pageOf(Math.min(end, area.end) - Math.max(start, area.start)));
    }
    return this.covers(start, end) ? null : new Failure('ENOMEM', 'RANGE_NOT_MAPPED', 'do_madvise');
  }

  /**
   * `dup_mmap`: the child's memory. Private pages are shared until one side writes; pinned ones are copied at once. EAGAIN as
   * long as pages are missing: whoever has them would have to bring them to both.
   */
  fork(): Result<AddressSpace> {
    if (!this.missing.isEmpty)
      return new Failure('EAGAIN', 'PAGES_MISSING', 'dup_userfaultfd', { pages: String(this.missing.size) });
    const child = new AddressSpace(this.provider);
    for (const area of this.areas) {
      child.areas.insert(area);
      if (area.shared) continue;
      this.notify(area.start, area.end, 'protection');
      for (const number of this.ptes.pages(pageOf(area.start), pageOf(area.end))) {
        const page = this.ptes.get(number);
        if (page === undefined) continue;
        if (page.pins > 0) {
          const copy = this.faults.copy(page);
          if (failed(copy)) return copy;
          child.ptes.set(number, copy, true);
          continue;
        }
        this.ptes.setWritable(number, false);
        child.ptes.set(number, page.get(), false);
      }
    }
    return child;
  }

  /** `exit_mmap`: nothing is mapped afterwards, and whoever registered a notifier has been told. */
  exit(): void {
    if (this.exited) return;
    this.notify(0, TASK_SIZE, 'release');
    this.missing.forget(0, pageOf(TASK_SIZE));
    for (const { start, end } of this.areas) this.zapPtes(start, end, false);
    this.areas.clear();
    this.exited = true;
  }

  // -- pages --------------------------------------------------------------------------------------------------------

  /** `get_user_pages` for one page, without a reference: valid until the next wait. EFAULT where the touch would fault. */
  fault(address: number, write: boolean): Result<Page> {
    return this.faults.handle(address, write);
  }

  /**
   * Page numbers in [start, end) that have ever been touched, here or by another user of an object; some twice. Touches nothing.
   */
  *touchedPages(start: number, end: number): Generator<PageRun> {
    yield* this.ptes.runs(pageOf(start), pageOf(end));
    for (const area of this.areas.overlapping(start, end)) {
      if (area.object?.touched === undefined) continue;
      const shift = pageOf(area.start) - area.firstPage;
      const [from, to] = [Math.max(area.start, start), Math.min(area.end, end)];
      for (const index of area.object.touched(pageOf(from) - shift, pageOf(to) - shift)) yield { first: index + shift, count: 1 };
    }
  }

  /** `pin_user_pages(FOLL_LONGTERM)` for one page: it stays where it is until `unpin`. */
  pin(address: number, write: boolean): Result<Page> {
    const page = this.fault(address, write);
    if (failed(page)) return page;
    page.pins++;
    return page.get();
  }

  static unpin(page: Page): void {
    page.pins--;
    page.put();
  }

  /**
   * What is in ranges now, for somebody who only reads it: who writes there through this address space from now on writes to a
   * copy, if it is private memory. EFAULT where a read would fault. Addresses of first bytes of pages.
   */
  snapshot(ranges: readonly { readonly start: number; readonly end: number }[]): Result<PageSnapshot> {
    const snapshot = new PageSnapshot(this.ptes, this.provider);
    let [first, last] = [TASK_SIZE, 0];
    for (const { start, end } of ranges) {
      const absent = this.faults.populateAll(start, end);
      if (absent !== null) {
        snapshot.release();
        return absent;
      }
      [first, last] = [Math.min(first, start), Math.max(last, end)];
      snapshot.add(pageOf(start), pageOf(end));
      for (const area of this.areas.overlapping(start, end))
        if (!area.shared) this.ptes.writeProtect(pageOf(Math.max(start, area.start)), pageOf(Math.min(end, area.end)));
    }
    if (first < last) this.notify(first, last, 'protection');
    return snapshot;
  }

  // -- missing pages ------------------------------------------------------------------------------------------------

  /**
   * UFFDIO_REGISTER: what is in [start, end) goes, and is missing from now on, until `fill` brings it or it is unmapped. Memory
   * for it is kept from now on, which UFFDIO_COPY in the real kernel has to find when it is too late to refuse. ENOMEM: not all
   * of the range is mapped, or there is no memory for it; in that case what was there has gone.
   */
  expect(missing: MissingPages, start: number, end: number): Failure | null {
    if (!this.covers(start, end))
      return new Failure('ENOMEM', 'RANGE_NOT_MAPPED', 'userfaultfd_register', { address: `0x${start.toString(16)}` });
    this.zap(start, end, 'clear');
    return this.missing.add(missing, pageOf(start), pageOf(end));
  }

  /** UFFDIO_COPY: the contents of a page. No effect on one that is not missing (any more). */
  fill(missing: MissingPages, address: number, bytes: Uint8Array): Failure | null {
    const number = pageOf(address);
    if (!missing.has(number)) return null;
    const page = this.missing.allocate(missing, number);
    if (failed(page)) return page;
    page.frame.viewForWrite(null).set(bytes);
    this.ptes.set(number, page, true);
    this.missing.arrived(missing, number, page.frame.viewForWrite(null));
    return null;
  }

  /** UFFDIO_POISON of all that is still missing: nobody has the contents any more, and who touches a page gets EFAULT. */
  lose(missing: MissingPages): void {
    this.missing.lose(missing);
  }

  /** True if something in [start, end) is missing. */
  hasMissing(start: number, end: number): boolean {
    return this.missing.overlaps(pageOf(start), pageOf(end));
  }

  // -- copying ------------------------------------------------------------------------------------------------------

  copyIn(address: bigint, length: number): Result<Uint8Array> {
    const start = Number(address);
    if (start < 0 || start + length > TASK_SIZE) return segv(address, 'copy_from_user');
    return this.read(start, length);
  }

  copyOut(address: bigint, bytes: Uint8Array): Failure | null {
    const start = Number(address);
    if (start < 0 || start + bytes.length > TASK_SIZE) return segv(address, 'copy_to_user');
    return this.write(start, bytes);
  }

  /** Reads as the process itself would; what an encryption key protects comes as ciphertext. */
  read(address: number, length: number): Result<Uint8Array> {
    const out = new Uint8Array(length);
    return this.readInto(address, out) ?? out;
  }

  /** The same into memory that is there. */
  readInto(address: number, out: Uint8Array): Failure | null {
    for (let done = 0; done < out.length; ) {
      const from = address + done;
      const run = this.bareRun(from, out.length - done);
      if (run !== null) {
        out.set(run, done);
        done += run.length;
        continue;
      }
      const page = this.fault(from, false);
      if (page instanceof PageMissing) page.alsoWant(from, address + out.length);
      if (failed(page)) return page;
      const offset = from % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, out.length - done);
      out.set(page.frame.view(null).subarray(offset, offset + count), done);
      done += count;
    }
    return null;
  }

  /** Whole pages from an address on, at most `length` bytes, that can be read without a look at each; null: not this one. */
  private bareRun(address: number, length: number): Uint8Array | null {
    if (address % PAGE_SIZE !== 0 || length < PAGE_SIZE) return null;
    const area = this.areas.find(address);
    if (area === undefined || !mayRead(area)) return null;
    return this.ptes.bareRun(pageOf(address), pageOf(Math.min(length, area.end - address)));
  }

  /** Writes as the process itself would; does not wait for missing pages. Bytes before the page that faults have been written. */
  write(address: number, bytes: Uint8Array): Failure | null {
    for (const watcher of this.writeWatchers) watcher(address, address + bytes.length);
    for (let done = 0; done < bytes.length; ) {
      const stored = bytes.length - done < STORED_MIN ? 0 : this.store(address + done, bytes.subarray(done));
      if (stored > 0) {
        done += stored;
        continue;
      }
      const page = this.fault(address + done, true);
      const offset = (address + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, bytes.length - done);
      const part = bytes.subarray(done, done + count);
      if (page instanceof PageMissing) page.store(offset, part);
      else if (failed(page)) return page;
      else page.frame.viewForWrite(null).set(part, offset);
      done += count;
    }
    return null;
  }

  // -- inside -------------------------------------------------------------------------------------------------------

  /** Writes as many bytes as go to whole pages of private memory that nobody has touched yet; 0: too few, or none is free. */
  private store(address: number, bytes: Uint8Array): number {
    const area = this.areas.find(address);
    const anonymous = area?.object === null && area.protection.write;
    if (!anonymous || address % PAGE_SIZE !== 0 || !this.missing.isEmpty) return 0;
    const [first, most] = [pageOf(address), pageOf(Math.min(bytes.length, area.end - address))];
    let pages = 0;
    while (pages < most && !this.ptes.has(first + pages)) pages++;
    if (pages * PAGE_SIZE < STORED_MIN) return 0;
    const frames = this.provider.storeBare(bytes.subarray(0, pages * PAGE_SIZE));
    if (failed(frames)) return 0;
    for (const [index, frame] of frames.entries()) this.ptes.setBare(first + index, frame);
    return pages * PAGE_SIZE;
  }

  private carve(start: number, end: number, change: (area: Vma) => Vma | null, event: MmuNotifierEvent): void {
    if (!this.overlaps(start, end)) return;
    if (event === 'unmap') this.zap(start, end, event);
    else this.notify(start, end, event);
    this.areas.carve(start, end, change);
  }

  private zap(start: number, end: number, event: MmuNotifierEvent, onlyShared = false): void {
    this.notify(start, end, event);
    if (!onlyShared) this.missing.forget(pageOf(start), Math.ceil(end / PAGE_SIZE));
    this.zapPtes(start, end, onlyShared);
  }

  /** @param objectOnly keeps private copies: a hole punched in a file does not reach them */
  private zapPtes(start: number, end: number, objectOnly: boolean): void {
    const isCopy = (page: number): boolean => this.ptes.isWritable(page) && !this.areas.find(page * PAGE_SIZE)?.shared;
    this.ptes.drop(pageOf(start), pageOf(end), objectOnly ? isCopy : () => false);
  }

  private notify(start: number, end: number, event: MmuNotifierEvent): void {
    for (const notifier of this.notifiers) notifier.invalidateRange(uva(start), uva(end), event);
  }
}
