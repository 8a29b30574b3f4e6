import { gfn, PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { Page } from '../kernel/mm/page.js';
import type { BatchRoom } from './batch-room.js';
import type { PageBatch } from './guest.js';

/** The page behind a guest frame, valid until the next wait; EFAULT where there is none. */
export const guestPage = (vm: Vm, frame: number, write: boolean): Result<Page> => {
  const slot = vm.memslots.find(gfn(frame));
  if (slot === undefined)
    return new Failure('EFAULT', 'FRAME_IN_NO_SLOT', 'server/migration', { gfn: `0x${frame.toString(16)}` });
  return vm.mm.fault(slot.hva(gfn(frame)), write && !slot.readonly);
};

/** Pages as the host sees them. */
export const readClear = (vm: Vm, gfns: readonly number[], room: BatchRoom): Result<PageBatch> => {
  const data = room.take(gfns.length * PAGE_SIZE);
  for (const [index, frame] of gfns.entries()) {
    const page = guestPage(vm, frame, false);
    if (failed(page)) return page;
    data.set(page.frame.view(null), index * PAGE_SIZE);
  }
  return { form: 'clear', gfns, headers: new Uint8Array(0), data };
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

/** @param keep what arrives becomes the guest's memory where it is; nobody else may use it afterwards */
export const writeClear = (vm: Vm, { gfns, data }: PageBatch, keep: boolean): Failure | null => {
  for (const [index, frame] of gfns.entries()) {
    const page = guestPage(vm, frame, true);
    if (failed(page)) return page;
    // A plain Uint8Array, as all cells are, also where the batch is a Buffer.
    const bytes = new Uint8Array(data.buffer, data.byteOffset + index * PAGE_SIZE, PAGE_SIZE);
    if (keep) page.frame.adopt(bytes);
    else page.frame.viewForWrite(null).set(bytes);
  }
  return null;
};
