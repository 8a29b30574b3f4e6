import { gfn, PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import { markPageDirty } from '../kernel/kvm/mark-page-dirty.js';
import type { Memslot } from '../kernel/kvm/memslots.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { Page } from '../kernel/mm/page.js';
import type { BatchRoom } from './batch-room.js';
import type { PageBatch } from './guest.js';

export const inNoSlot = (frame: number): Failure =>
  new Failure('EFAULT', 'FRAME_IN_NO_SLOT', 'server/migration', { gfn: `0x${frame.toString(16)}` });

/** The page behind a guest frame, valid until the next wait; EFAULT where there is none. */
export const guestPage = (vm: Vm, frame: number, write: boolean): Result<Page> => {
  const slot = vm.memslots.find(gfn(frame));
  return slot === undefined ? inNoSlot(frame) : vm.mm.fault(slot.hva(gfn(frame)), write && !slot.readonly);
};

/** Pages as the host sees them. */
export const readClear = (vm: Vm, gfns: readonly number[], room: BatchRoom): Result<PageBatch> => {
  const memory = room.take(gfns.length * PAGE_SIZE);
  const data = memory.bytes;
  const failure = eachRun(vm, gfns, (slot, at, pages) => {
    const bytes = data.subarray(at * PAGE_SIZE, (at + pages) * PAGE_SIZE);
    return vm.mm.readInto(slot.hva(gfn(gfns[at] ?? 0)), bytes);
  });
  return failure ?? { form: 'clear', gfns, headers: new Uint8Array(0), data, memory };
};

/** The sizes of a batch must agree, whoever made it. */
export const checkBatch = ({ form, gfns, headers, data }: PageBatch, headerBytes: number): Failure | null =>
  data.length === gfns.length * PAGE_SIZE && headers.length === (form === 'sealed' ? gfns.length * headerBytes : 0)
    ? null
    : new Failure('EINVAL', 'PAGE_BATCH_SIZE', 'server/migration', {
        pages: String(gfns.length),
        data: String(data.length),
        headers: String(headers.length),
      });

/** Writes pages as the host does, also where the process itself may only read. */
export const writeClear = (vm: Vm, { gfns, data }: PageBatch): Failure | null =>
  eachRun(vm, gfns, (slot, at, pages) => {
    const bytes = data.subarray(at * PAGE_SIZE, (at + pages) * PAGE_SIZE);
    const address = slot.hva(gfn(gfns[at] ?? 0));
    logArrived(vm, slot, gfns[at] ?? 0, pages);
    return slot.readonly ? writeBehind(vm, address, bytes) : vm.mm.write(address, bytes);
  });

/** To a VMM that reads the slot's dirty log, what has come may be what was dirty at the source. */
const logArrived = (vm: Vm, slot: Memslot, first: number, count: number): void => {
  if (slot.logsDirty) for (let frame = first; frame < first + count; frame++) markPageDirty(vm, null, slot, gfn(frame));
};

/** The same for frames that need not lie in one slot. */
export const logArrivals = (vm: Vm, gfns: readonly number[]): void => {
  for (const frame of gfns) {
    const slot = vm.memslots.find(gfn(frame));
    if (slot !== undefined) logArrived(vm, slot, frame, 1);
  }
};

/** Goes through frames as far as they follow each other in a slot: `at` is the index of the first one, of so many `pages`. */
const eachRun = (
  vm: Vm,
  gfns: readonly number[],
  each: (slot: Memslot, at: number, pages: number) => Failure | null,
): Failure | null => {
  for (let at = 0, pages: number; at < gfns.length; at += pages) {
    const first = gfns[at] ?? 0;
    const slot = vm.memslots.find(gfn(first));
    if (slot === undefined) return inNoSlot(first);
    pages = 1;
    while (gfns[at + pages] === first + pages && first + pages < slot.endGfn) pages++;
    const failure = each(slot, at, pages);
    if (failure !== null) return failure;
  }
  return null;
};

/** Writes what the process itself may only read. */
const writeBehind = (vm: Vm, address: number, bytes: Uint8Array): Failure | null => {
  for (let done = 0; done < bytes.length; done += PAGE_SIZE) {
    const page = vm.mm.fault(address + done, false);
    if (failed(page)) return page;
    page.frame.viewForWrite(null).set(bytes.subarray(done, done + PAGE_SIZE));
  }
  return null;
};
