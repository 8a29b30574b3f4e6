import { KVM_EXIT, KVM_INTERNAL_ERROR } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import {
  KVM_RUN_SYNC_REGS_OFFSET,
  kvm_run,
  kvm_run__debug,
  kvm_run__emulation_failure,
  kvm_run__eoi,
  kvm_run__fail_entry,
  kvm_run__hypercall,
  kvm_run__internal,
  kvm_run__io,
  kvm_run__memory_fault,
  kvm_run__mmio,
  kvm_run__msr,
  kvm_run__system_event,
  kvm_run__tpr_access,
} from '../../../server/kernel/uapi/kvm-run.js';
import { kvm_regs } from '../../../server/kernel/uapi/x86-structs.js';
import type { Executor } from '../executor.js';
import type { Mapping } from '../handles.js';
import { type OpArgs, toHex } from '../op-args.js';
import { finish, hex, type Operation, type OpResult } from '../operation.js';
import { failedWith, type Outcome, type SystemCalls } from '../system-calls.js';
import { setFields, showRegs } from './regs.js';

const SIGUSR1 = 10;
/** Bytes of data that an I/O exit can have: the PIO page. */
const PIO_DATA_MAX = 4096;
/** Period in which a run that is over its time is signalled again. */
const SIGNAL_PERIOD_MS = 20;

const EXIT_NAMES: readonly string[] =
  `UNKNOWN EXCEPTION IO HYPERCALL DEBUG HLT MMIO IRQ_WINDOW_OPEN SHUTDOWN FAIL_ENTRY INTR SET_TPR TPR_ACCESS S390_SIEIC
   S390_RESET DCR NMI INTERNAL_ERROR OSI PAPR_HCALL S390_UCONTROL WATCHDOG S390_TSCH EPR SYSTEM_EVENT S390_STSI IOAPIC_EOI HYPERV
   ARM_NISV X86_RDMSR X86_WRMSR DIRTY_RING_FULL AP_RESET_HOLD X86_BUS_LOCK XEN RISCV_SBI RISCV_CSR NOTIFY LOONGARCH_IOCSR
   MEMORY_FAULT TDX`.split(/\s+/);

/** kvm_run as the script's process sees it, with the PIO page behind it. */
const readRunArea = async (calls: SystemCalls, run: Mapping): Promise<Uint8Array> =>
  (await calls.load(run.address, run.length)).data;

/** Writes the fields of kvm_run that the op gives, and the answer to an exit that waits for one. */
const prepare = async (calls: SystemCalls, run: Mapping, args: OpArgs): Promise<void> => {
  const area = await readRunArea(calls, run);
  kvm_run.write(area, {
    immediate_exit: args.u32('immediate_exit') & 0xff,
    request_interrupt_window: args.u32('request_interrupt_window') & 0xff,
    ...(args.has('cr8') ? { cr8: args.u64('cr8') } : {}),
    ...(args.has('valid_regs') ? { kvm_valid_regs: args.u64('valid_regs') } : {}),
    ...(args.has('dirty_regs') ? { kvm_dirty_regs: args.u64('dirty_regs') } : {}),
  });
  const { exit_reason } = kvm_run.decode(area);
  if (args.has('io_in') && exit_reason === KVM_EXIT.IO) {
    const offset = Number(kvm_run__io.decode(area).data_offset);
    if (offset < 2 * 4096) area.set(args.bytes('io_in').subarray(0, PIO_DATA_MAX), offset);
  }
  if (args.has('mmio_in') && exit_reason === KVM_EXIT.MMIO)
    area.set(args.bytes('mmio_in').subarray(0, 8), kvm_run__mmio.fields.data.offset);
  if (args.has('msr_data')) kvm_run__msr.write(area, { data: args.u64('msr_data') });
  if (args.has('msr_error')) kvm_run__msr.write(area, { error: args.u32('msr_error') & 0xff });
  if (args.has('hypercall_ret')) kvm_run__hypercall.write(area, { ret: args.u64('hypercall_ret') });
  setFields(kvm_regs, area, args.entries('sync_set'), KVM_RUN_SYNC_REGS_OFFSET);
  await calls.store(run.address, area.subarray(0, 2 * 4096));
};

const setImmediateExit = async (calls: SystemCalls, run: Mapping | undefined, value: number): Promise<void> => {
  if (run === undefined) return;
  const address = run.address + BigInt(kvm_run.fields.immediate_exit.offset);
  await calls.store(address, Uint8Array.of(value));
};

/** KVM_RUN with a time limit: after it, immediate_exit is set and the thread signalled until the call is over. */
const runWithLimit = async (
  calls: SystemCalls,
  fd: number,
  run: Mapping | undefined,
  args: OpArgs,
): Promise<{ readonly outcome: Outcome; readonly timedOut: boolean }> => {
  let outcome: Outcome | null = null;
  const done = calls.ioctl(fd, IOCTL.KVM_RUN, args.u64('arg')).then((result) => {
    outcome = result;
    return result;
  });
  let timedOut = false;
  const isOver = (): boolean => outcome !== null;
  for (let wait = args.number('timeout_ms', 2000); ; wait = SIGNAL_PERIOD_MS) {
    const limit = calls.timer(wait);
    await Promise.race([done, limit.expired]);
    limit.cancel();
    if (isOver()) break;
    timedOut = true;
    await setImmediateExit(calls, run, 1);
    await calls.signal(SIGUSR1);
  }
  return { outcome: await done, timedOut };
};

const runOp: Operation = async ({ calls, handles }, args) => {
  const handle = handles.find(args.text('vcpu'));
  const fd = handle?.fd ?? args.descriptor('vcpu');
  const run = handle?.run;
  if (run !== undefined) await prepare(calls, run, args);
  const { outcome, timedOut } = await runWithLimit(calls, fd, run, args);
  await setImmediateExit(calls, run, args.u32('immediate_exit') & 0xff);
  const answer: OpResult = { ...finish(outcome), ...(timedOut ? { timed_out: true } : {}) };
  const shown = outcome.ret === 0n || ['EINTR', 'EFAULT', 'EAGAIN'].includes(outcome.errno ?? '') || args.truthy('force_out');
  return run !== undefined && shown ? { ...answer, ...(await describeRun(calls, run, args)) } : answer;
};

const describeRun = async (calls: SystemCalls, run: Mapping, args: OpArgs): Promise<OpResult> => {
  const area = await readRunArea(calls, run);
  const head = kvm_run.decode(area);
  const aux = {
    if_flag: head.if_flag,
    ready_for_interrupt_injection: head.ready_for_interrupt_injection,
    cr8: hex(head.cr8),
    apic_base: hex(head.apic_base),
    run_flags: head.flags,
  };
  return {
    ...describeExit(area, head.exit_reason, args),
    ...(args.truthy('aux') ? aux : {}),
    ...(args.truthy('show_sync') ? showRegs(kvm_regs.decode(area, KVM_RUN_SYNC_REGS_OFFSET), args) : {}),
  };
};

const describeExit = (area: Uint8Array, reason: number, args: OpArgs): OpResult => ({
  exit_reason: reason,
  exit: EXIT_NAMES[reason] ?? '?',
  ...(DETAILS[reason]?.(area, args) ?? {}),
});

const describeIo = (area: Uint8Array): OpResult => {
  const { direction, size, port, count, data_offset } = kvm_run__io.decode(area);
  const length = Math.min(size * count, PIO_DATA_MAX);
  const at = Number(data_offset);
  const data: OpResult = direction === 1 && at + length <= area.length ? { data: toHex(area.subarray(at, at + length)) } : {};
  return {
    io: { direction: direction === 1 ? 'out' : 'in', size, port: hex(port), count, data_offset: Number(data_offset), ...data },
  };
};

const describeMmio = (area: Uint8Array): OpResult => {
  const { phys_addr, data, len, is_write } = kvm_run__mmio.decode(area);
  const written: OpResult = is_write !== 0 ? { data: toHex(data.subarray(0, Math.min(8, len))) } : {};
  return { mmio: { phys_addr: hex(phys_addr), len, is_write, ...written } };
};

const describeInternalError = (area: Uint8Array, args: OpArgs): OpResult => {
  const { suberror, ndata, data } = kvm_run__internal.decode(area);
  if (suberror === KVM_INTERNAL_ERROR.EMULATION && ndata >= 3) {
    const { flags, insn_size, insn_bytes } = kvm_run__emulation_failure.decode(area);
    const instruction: OpResult =
      (flags & 1n) === 0n ? {} : { insn_size, insn_bytes: toHex(insn_bytes.subarray(0, Math.min(15, insn_size))) };
    return { internal: { suberror, ndata, flags: hex(flags), ...instruction } };
  }
  const words: OpResult = args.truthy('drop_data') ? {} : { data: data.slice(0, Math.min(ndata, 16)).map(hex) };
  return { internal: { suberror, ndata, ...words } };
};

const describeMsr =
  (isWrite: boolean) =>
  (area: Uint8Array): OpResult => {
    const { error, reason, index, data } = kvm_run__msr.decode(area);
    return { msr: { error, reason, index: hex(index), data: hex(isWrite ? data : 0n) } };
  };

/** What is shown of each exit beside its reason. */
const DETAILS: Readonly<Record<number, (area: Uint8Array, args: OpArgs) => OpResult>> = {
  [KVM_EXIT.IO]: describeIo,
  [KVM_EXIT.MMIO]: describeMmio,
  [KVM_EXIT.INTERNAL_ERROR]: describeInternalError,
  [KVM_EXIT.FAIL_ENTRY]: (area) => ({
    fail_entry: { reason: hex(kvm_run__fail_entry.decode(area).hardware_entry_failure_reason) },
  }),
  [KVM_EXIT.DEBUG]: (area) => {
    const { exception, pc, dr6, dr7 } = kvm_run__debug.decode(area);
    return { debug: { exception, pc: hex(pc), dr6: hex(dr6), dr7: hex(dr7) } };
  },
  [KVM_EXIT.SYSTEM_EVENT]: (area) => ({ system_event: { type: kvm_run__system_event.decode(area).type } }),
  [KVM_EXIT.HYPERCALL]: (area) => {
    const { nr, args } = kvm_run__hypercall.decode(area);
    return { hypercall: { nr, args: args.slice(0, 3).map(hex) } };
  },
  [KVM_EXIT.X86_RDMSR]: describeMsr(false),
  [KVM_EXIT.X86_WRMSR]: describeMsr(true),
  [KVM_EXIT.IOAPIC_EOI]: (area) => ({ eoi: { vector: kvm_run__eoi.decode(area).vector } }),
  [KVM_EXIT.TPR_ACCESS]: (area) => {
    const { rip, is_write } = kvm_run__tpr_access.decode(area);
    return { tpr_access: { rip: hex(rip), is_write } };
  },
  [KVM_EXIT.MEMORY_FAULT]: (area) => {
    const { flags, gpa, size } = kvm_run__memory_fault.decode(area);
    return { memory_fault: { flags: hex(flags), gpa: hex(gpa), size: hex(size) } };
  },
};

const setImmediateExitOp: Operation = async ({ calls, handles }, args) => {
  await setImmediateExit(calls, handles.find(args.text('vcpu'))?.run, args.number('value', 1) & 0xff);
  return { ret: 0, errno: null };
};

const readRun = async ({ calls, handles }: Executor, args: OpArgs): Promise<OpResult> => {
  const run = handles.find(args.text('vcpu'))?.run;
  if (run === undefined) return finish(failedWith('EBADF'));
  const area = await readRunArea(calls, run);
  return { ret: 0, errno: null, ...describeExit(area, kvm_run.decode(area).exit_reason, args) };
};

/** KVM_RUN, and looks at the run page. */
export const RUN_OPS: Readonly<Record<string, Operation>> = {
  run: runOp,
  set_immediate_exit: setImmediateExitOp,
  read_run: readRun,
};
