import { GHCB, GHCB_MSR, ghcbMsr } from '../../../../hardware/amd/ghcb.js';
import { type Gpa, gpa, PAGE_SIZE } from '../../../../hardware/units.js';
import { KVM_EXIT, KVM_HC, KVM_MAP_GPA_RANGE } from '../../../uapi/constants.js';
import { kvm_run__hypercall } from '../../../uapi/kvm-run.js';
import type { Vcpu } from '../../vcpu.js';
import type { Vm } from '../../vm.js';
import { completion } from '../../x86/completion.js';
import type { VendorExit } from '../../x86/ops.js';
import type { Turn } from '../../x86/vcpu-arch.js';
import { GHCB_ERR, type GhcbHandler, type GhcbRequest, reject, scratchArea, succeed } from '../ghcb-request.js';
import { readGuest, writeGuest } from '../guest-memory.js';
import { isSevSnpGuest } from '../sev-info.js';
import { toSvm } from '../vcpu-svm.js';

/**
 * Page state changes: an SNP guest asks for pages to become private or shared. KVM changes nothing by itself; userspace is
 * asked by KVM_EXIT_HYPERCALL, sets memory attributes, and the next fault finds the page in its new state.
 */

const PSC_OPERATION = { PRIVATE: 1, SHARED: 2 } as const;
type Operation = (typeof PSC_OPERATION)[keyof typeof PSC_OPERATION];

const isOperation = (value: number): value is Operation => value === PSC_OPERATION.PRIVATE || value === PSC_OPERATION.SHARED;

/** `user_exit_on_hypercall`. */
const userspaceConverts = ({ arch }: Vm): boolean => ((arch.hypercallExitMask >> BigInt(KVM_HC.MAP_GPA_RANGE)) & 1n) === 1n;

interface Conversion {
  /** First guest frame. */
  readonly frame: number;
  readonly npages: number;
  readonly operation: Operation;
  readonly large: boolean;
}

/** KVM_EXIT_HYPERCALL; `then` gets what userspace has answered. What it leaves as it is counts as success. */
const askUserspace = (vcpu: Vcpu, { frame, npages, operation, large }: Conversion, then: (done: boolean) => Turn): Turn => {
  const { arch } = vcpu;
  const { ENCRYPTED, DECRYPTED, PAGE_SZ_2M, PAGE_SZ_4K } = KVM_MAP_GPA_RANGE;
  const attributes = (operation === PSC_OPERATION.PRIVATE ? ENCRYPTED : DECRYPTED) | (large ? PAGE_SZ_2M : PAGE_SZ_4K);
  arch.run.exit(KVM_EXIT.HYPERCALL, kvm_run__hypercall, {
    nr: BigInt(KVM_HC.MAP_GPA_RANGE),
    args: [BigInt(frame) * BigInt(PAGE_SIZE), BigInt(npages), attributes, 0n, 0n, 0n],
    ret: 0n,
    flags: 0n,
  });
  arch.completion = completion('hypercall', true, () => then(arch.run.read(kvm_run__hypercall).ret === 0n));
  return 'to-user';
};

/** `GHCB_MSR_PSC_RESP_ERROR`: anything but zero above bit 31 is an error; KVM sets the highest bit. */
const MSR_ERROR = 1n << 63n;
const FRAME_MASK = (1n << 40n) - 1n;

/** `snp_begin_psc_msr`: one page, before the guest has a GHCB. */
export const pageStateChangeByMsr = (vcpu: Vcpu, request: bigint): VendorExit => {
  const operation = Number((request >> 52n) & 0xfn);
  const answer = (done: boolean): Turn => {
    toSvm(vcpu).vmcb.ghcb = ghcbMsr(GHCB_MSR.PSC_RESP, 0n) | (done ? 0n : MSR_ERROR);
    return 'again';
  };
  if (!isOperation(operation) || !userspaceConverts(vcpu.vm)) {
    answer(false);
    return { kind: 'handled' };
  }
  askUserspace(vcpu, { frame: Number((request >> 12n) & FRAME_MASK), npages: 1, operation, large: false }, answer);
  return { kind: 'to-user' };
};

/** Results in exit_info_2. */
const PSC_RESULT = {
  DONE: 0n,
  ERROR_GENERIC: 0x100n << 32n,
  ERROR_INVALID_HEADER: (1n << 32n) | 1n,
  ERROR_INVALID_ENTRY: (1n << 32n) | 2n,
} as const;

/** `VMGEXIT_PSC_MAX_COUNT`: as many entries as the shared buffer of a GHCB holds; fewer where the list begins further on. */
const ENTRIES_MAX = 253;
const HEADER_SIZE = 8;
const ENTRY_SIZE = 8;
const PAGES_PER_2M = 512;

interface Entry {
  /** Pages that are done. */
  readonly currentPage: number;
  readonly frame: number;
  readonly operation: number;
  readonly large: boolean;
}

const pagesOf = ({ large }: Entry): number => (large ? PAGES_PER_2M : 1);

/** `struct psc_buffer` in guest memory. The guest may change it at any time, so each value is read once and then checked. */
class PscBuffer {
  constructor(
    private readonly vcpu: Vcpu,
    private readonly address: Gpa,
    readonly entriesMax: number,
  ) {}

  /** Indices of the entry that is next and of the last one; null where there is no memory. */
  header(): { readonly current: number; readonly end: number } | null {
    const bytes = readGuest(this.vcpu, this.address, HEADER_SIZE);
    if (bytes === null) return null;
    const view = new DataView(bytes.buffer);
    return { current: view.getUint16(0, true), end: view.getUint16(2, true) };
  }

  setCurrent(index: number): void {
    writeGuest(this.vcpu, this.address, Uint8Array.of(index & 0xff, index >>> 8));
  }

  entry(index: number): Entry | null {
    const bytes = readGuest(this.vcpu, this.addressOf(index), ENTRY_SIZE);
    if (bytes === null) return null;
    const value = new DataView(bytes.buffer).getBigUint64(0, true);
    return {
      currentPage: Number(value & 0xfffn),
      frame: Number((value >> 12n) & FRAME_MASK),
      operation: Number((value >> 52n) & 0xfn),
      large: ((value >> 56n) & 1n) === 1n,
    };
  }

  /** `cur_page`, which says that all of the entry is done. */
  setDone(index: number): void {
    const entry = this.entry(index);
    if (entry === null) return;
    const pages = pagesOf(entry);
    const mixed = readGuest(this.vcpu, gpa(this.addressOf(index) + 1), 1)?.[0] ?? 0;
    writeGuest(this.vcpu, this.addressOf(index), Uint8Array.of(pages & 0xff, (mixed & 0xf0) | (pages >>> 8)));
  }

  private addressOf(index: number): Gpa {
    return gpa(this.address + HEADER_SIZE + index * ENTRY_SIZE);
  }
}

/** Entries that one exit to userspace covers. */
interface Batch extends Omit<Conversion, 'operation'> {
  readonly operation: number;
  readonly first: number;
  readonly count: number;
}

/** The first entry with something left to do; or how the request ends. */
const findStart = (buffer: PscBuffer): { readonly index: number; readonly entry: Entry; readonly end: number } | bigint => {
  const header = buffer.header();
  if (header === null || header.end >= buffer.entriesMax) return PSC_RESULT.ERROR_INVALID_HEADER;
  for (let index = header.current; index <= header.end; index++) {
    const entry = buffer.entry(index);
    if (entry === null || entry.currentPage > pagesOf(entry) || entry.frame % pagesOf(entry) !== 0)
      return PSC_RESULT.ERROR_INVALID_ENTRY;
    if (entry.currentPage < pagesOf(entry)) return { index, entry, end: header.end };
    buffer.setCurrent(index + 1);
  }
  return PSC_RESULT.DONE;
};

/**
 * Adds the entries that follow on, as long as they ask for the same in the same size. A 2 MiB page that is partly done is 4 KiB
 * pages.
 */
const nextBatch = (buffer: PscBuffer): Batch | bigint => {
  const start = findStart(buffer);
  if (typeof start === 'bigint') return start;
  const { index: first, entry, end } = start;
  const { operation, currentPage } = entry;
  const large = entry.large && currentPage === 0;
  let npages = pagesOf(entry) - currentPage;
  let count = 1;
  for (let index = first + 1; index <= end; index++) {
    const next = buffer.entry(index);
    const follows = next?.operation === operation && next.frame === entry.frame + npages && next.currentPage === 0;
    if (next === null || !follows || next.large !== large) break;
    npages += pagesOf(next);
    count++;
  }
  return { first, count, frame: entry.frame + currentPage, npages, operation, large: entry.large };
};

/** `snp_begin_psc`, which userspace's answer leads back to. Operations other than the two count as done. */
const proceed = (request: GhcbRequest, buffer: PscBuffer): Turn => {
  for (;;) {
    const batch = nextBatch(buffer);
    if (typeof batch === 'bigint') return succeed(request, batch);
    const finish = (): void => {
      for (let index = batch.first; index < batch.first + batch.count; index++) buffer.setDone(index);
      buffer.setCurrent(batch.first + batch.count);
    };
    const { operation } = batch;
    if (isOperation(operation))
      return askUserspace(request.vcpu, { ...batch, operation }, (done) => {
        if (!done) return succeed(request, PSC_RESULT.ERROR_GENERIC);
        finish();
        return proceed(request, buffer);
      });
    finish();
  }
};

const entriesFrom = ({ ghcb }: GhcbRequest, address: Gpa): number => {
  const end = ghcb + GHCB.sharedBuffer.offset + GHCB.sharedBuffer.size;
  const inGhcb = address >= ghcb && address < end;
  return inGhcb ? Math.floor((end - address - HEADER_SIZE) / ENTRY_SIZE) : ENTRIES_MAX;
};

/** SVM_VMGEXIT_PSC: many pages at once, in a list that lies in the scratch area. */
export const pageStateChange: GhcbHandler = (request) => {
  const { vcpu, info2 } = request;
  if (!isSevSnpGuest(vcpu.vm)) return reject(request, GHCB_ERR.MISSING_INPUT);
  const address = scratchArea(request, info2);
  if (typeof address !== 'number') return address;
  if (!userspaceConverts(vcpu.vm)) return succeed(request, PSC_RESULT.ERROR_GENERIC);
  return proceed(request, new PscBuffer(vcpu, address, entriesFrom(request, address)));
};
