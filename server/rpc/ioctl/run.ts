import type { Failure } from '../../kernel/failure.js';
import { failed } from '../../kernel/failure.js';
import { InlineCopy } from '../../kernel/fs/inline-copy.js';
import type { RunPages } from '../../kernel/kvm/run-pages.js';
import { VcpuFile } from '../../kernel/kvm/vcpu-file.js';
import { stepsOf } from '../../kernel/sched/wait.js';
import { KVM_EXIT, KVM_INTERNAL_ERROR } from '../../kernel/uapi/constants.js';
import { IOCTL } from '../../kernel/uapi/ioctls.js';
import {
  KVM_RUN_SYNC_REGS_OFFSET,
  kvm_run,
  kvm_run__debug,
  kvm_run__emulation_failure,
  kvm_run__eoi,
  kvm_run__ex,
  kvm_run__fail_entry,
  kvm_run__hw,
  kvm_run__hypercall,
  kvm_run__internal,
  kvm_run__io,
  kvm_run__memory_fault,
  kvm_run__mmio,
  kvm_run__msr,
  kvm_run__notify,
  kvm_run__snp_req_certs,
  kvm_run__system_event,
  kvm_run__tpr_access,
  kvm_sync_regs,
} from '../../kernel/uapi/kvm-run.js';
import type { Fields, Struct } from '../../kernel/uapi/struct.js';
import { refused } from '../call.js';
import { fdOf, type IoctlMethod, issue, mmOf } from './method.js';
import { decodeStruct, encodeStruct, isMessage, type Message } from './struct-message.js';

/** Members of kvm_run's union by exit reason: the field of the message, and the structure. */
const UNION: ReadonlyMap<number, readonly [string, Struct<Fields>]> = new Map<number, readonly [string, Struct<Fields>]>([
  [KVM_EXIT.UNKNOWN, ['hw', kvm_run__hw]],
  [KVM_EXIT.FAIL_ENTRY, ['fail_entry', kvm_run__fail_entry]],
  [KVM_EXIT.EXCEPTION, ['ex', kvm_run__ex]],
  [KVM_EXIT.IO, ['io', kvm_run__io]],
  [KVM_EXIT.DEBUG, ['debug', kvm_run__debug]],
  [KVM_EXIT.MMIO, ['mmio', kvm_run__mmio]],
  [KVM_EXIT.HYPERCALL, ['hypercall', kvm_run__hypercall]],
  [KVM_EXIT.TPR_ACCESS, ['tpr_access', kvm_run__tpr_access]],
  [KVM_EXIT.INTERNAL_ERROR, ['internal', kvm_run__internal]],
  [KVM_EXIT.SYSTEM_EVENT, ['system_event', kvm_run__system_event]],
  [KVM_EXIT.IOAPIC_EOI, ['eoi', kvm_run__eoi]],
  [KVM_EXIT.X86_RDMSR, ['msr', kvm_run__msr]],
  [KVM_EXIT.X86_WRMSR, ['msr', kvm_run__msr]],
  [KVM_EXIT.NOTIFY, ['notify', kvm_run__notify]],
  [KVM_EXIT.MEMORY_FAULT, ['memory_fault', kvm_run__memory_fault]],
  [KVM_EXIT.SNP_REQ_CERTS, ['snp_req_certs', kvm_run__snp_req_certs]],
]);

const PAGE_SIZE = 4096;

/** Writes what the request says into the shared pages, as a VMM does before KVM_RUN. */
const writeInput = (pages: RunPages, input: Message): Failure | null => {
  const run = pages.run.bytes;
  const put = (struct: Struct<Fields>, message: Message): Failure | null => {
    const given = Object.fromEntries(Object.entries(message).filter(([name, value]) => name in struct.fields && isGiven(value)));
    const encoded = encodeStruct(struct, given, 'input');
    if (failed(encoded)) return encoded;
    for (const name of Object.keys(given)) copyField(struct, name, encoded, run);
    return null;
  };
  const refusal = put(kvm_run, input);
  if (refusal !== null) return refusal;
  const { io_in, mmio_in, s } = input;
  if (io_in instanceof Uint8Array) pages.pio.bytes.set(io_in.subarray(0, PAGE_SIZE));
  if (mmio_in instanceof Uint8Array) kvm_run__mmio.write(run, { data: mmio_in });
  if (isGiven(input.hypercall_ret)) put(kvm_run__hypercall, { ret: input.hypercall_ret });
  if (isGiven(input.snp_req_certs_ret)) put(kvm_run__snp_req_certs, { ret: input.snp_req_certs_ret });
  if (isGiven(input.snp_req_certs_npages)) put(kvm_run__snp_req_certs, { npages: input.snp_req_certs_npages });
  if (isGiven(input.msr_data)) put(kvm_run__msr, { data: input.msr_data });
  if (isGiven(input.msr_error)) put(kvm_run__msr, { error: input.msr_error });
  return isMessage(s) ? writeSyncRegs(run, s) : null;
};

const isGiven = (value: unknown): boolean => value !== null && value !== undefined;

const copyField = (struct: Struct<Fields>, name: string, from: Uint8Array, to: Uint8Array): void => {
  const field = struct.fields[name];
  if (field !== undefined) to.set(from.subarray(field.offset, field.offset + field.size), field.offset);
};

const writeSyncRegs = (run: Uint8Array, message: Message): Failure | null => {
  const encoded = encodeStruct(kvm_sync_regs, message, 'input.s');
  if (failed(encoded)) return encoded;
  const to = run.subarray(KVM_RUN_SYNC_REGS_OFFSET);
  for (const [name, value] of Object.entries(message)) if (isGiven(value)) copyField(kvm_sync_regs, name, encoded, to);
  return null;
};

/** `kvm_run` as the page has it. */
const readRun = (pages: RunPages): Message => {
  const bytes = pages.run.bytes;
  const message = decodeStruct(kvm_run, bytes);
  if (message.kvm_valid_regs !== 0n) message.s = decodeStruct(kvm_sync_regs, bytes, KVM_RUN_SYNC_REGS_OFFSET);
  const reason = Number(message.exit_reason);
  const member = UNION.get(reason);
  if (member === undefined) return message;
  const [field, struct] = member;
  if (reason === KVM_EXIT.IO) return { ...message, io: ioExit(pages) };
  if (reason === KVM_EXIT.INTERNAL_ERROR) return { ...message, ...internalError(bytes) };
  if (reason === KVM_EXIT.SYSTEM_EVENT) return { ...message, system_event: counted(struct, bytes) };
  return { ...message, [field]: decodeStruct(struct, bytes) };
};

const ioExit = (pages: RunPages): Message => {
  const io = kvm_run__io.decode(pages.run.bytes);
  return { ...io, data: pages.pio.bytes.slice(0, Math.min(io.size * io.count, PAGE_SIZE)) };
};

/** A member with `ndata` words, of which only those count. */
const counted = (struct: Struct<Fields>, bytes: Uint8Array): Message => {
  const message = decodeStruct(struct, bytes);
  const { ndata, data } = message;
  return { ...message, data: Array.isArray(data) && typeof ndata === 'number' ? data.slice(0, ndata) : [] };
};

const internalError = (bytes: Uint8Array): Message => {
  if (kvm_run__internal.decode(bytes).suberror !== KVM_INTERNAL_ERROR.EMULATION)
    return { internal: counted(kvm_run__internal, bytes) };
  return { emulation_failure: decodeStruct(kvm_run__emulation_failure, bytes) };
};

const NO_ANSWER = { value: 0n, answer: () => ({}) };

/**
 * KVM_RUN. The typed form is the raw one around the vCPU's shared page: inputs are written there, and the reply is read
 * from there, so a mapping and the message cannot disagree. The reply has the page also where the call failed.
 */
export const run: IoctlMethod = {
  role: 'process',
  mutates: true,
  syscall: 'KVM_RUN',
  *handle(current, _host, request) {
    const inline = new InlineCopy(mmOf(current));
    const file = current.process.files.lookup(fdOf(request));
    if (!(file?.ops instanceof VcpuFile)) return yield* stepsOf(issue(current, request, IOCTL.KVM_RUN, inline, NO_ANSWER));
    const pages = file.ops.vcpu.runPages;
    const refusal = isMessage(request.input) ? writeInput(pages, request.input) : null;
    if (refusal !== null) return refused(refusal);
    // The descriptor may be closed while the guest runs; the pages must last until the reply has been read from them.
    file.get();
    const { failure, response } = yield* stepsOf(issue(current, request, IOCTL.KVM_RUN, inline, NO_ANSWER));
    const reply = { failure, response: { ret: response?.ret ?? -1, run: readRun(pages) } };
    yield* file.put(current);
    return reply;
  },
};
