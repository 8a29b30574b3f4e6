import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_cpuid_entry2, kvm_cpuid2, kvm_msr_list } from '../../../server/kernel/uapi/x86-structs.js';
import type { Executor } from '../executor.js';
import type { Json } from '../json.js';
import type { OpArgs } from '../op-args.js';
import { finish, hex, type Operation, type OpResult } from '../operation.js';
import { ioctlIn, ioctlInOut, valueOp } from './ioctl.js';

const O_CLOEXEC = 0o2000000;
const ACCESS_MODES: Readonly<Record<string, number>> = { ro: 0, wo: 1, rw: 2 };
const MSRS_MAX = 4096;
const CPUID_MAX = 512;

const open: Operation = async (executor, args) => {
  const mode = ACCESS_MODES[args.text('flags', 'rw')] ?? 2;
  return executor.finishFd(await executor.calls.open(args.text('path', '/dev/kvm'), mode | O_CLOEXEC), args);
};

const createVm: Operation = async (executor, args) =>
  executor.finishFd(await executor.calls.ioctl(args.fd, IOCTL.KVM_CREATE_VM, args.u64('type')), args);

const msrIndexList =
  (request: number): Operation =>
  async (executor, args) => {
    const list = new Uint8Array(kvm_msr_list.size + MSRS_MAX * 4);
    kvm_msr_list.write(list, { nmsrs: args.u32('nmsrs') });
    const { outcome, data } = await ioctlInOut(executor, args.fd, request, list);
    return { ...finish(outcome), nmsrs: kvm_msr_list.decode(data).nmsrs };
  };

const cpuidEntries = (data: Uint8Array, count: number): Json[] =>
  Array.from({ length: count }, (_, index) => {
    const entry = kvm_cpuid_entry2.decode(data, kvm_cpuid2.size + index * kvm_cpuid_entry2.size);
    return {
      function: hex(entry.function),
      index: entry.index,
      flags: entry.flags,
      eax: hex(entry.eax),
      ebx: hex(entry.ebx),
      ecx: hex(entry.ecx),
      edx: hex(entry.edx),
    };
  });

const getCpuid =
  (request: number, showEntries: boolean): Operation =>
  async (executor, args) => {
    const given = args.u32('nent', CPUID_MAX);
    const { outcome, data } = await ioctlInOut(executor, args.fd, request, cpuidBuffer(given));
    const { nent } = kvm_cpuid2.decode(data);
    const shown = outcome.ret === 0n && args.truthy('entries', showEntries);
    return { ...finish(outcome), nent, ...(shown ? { entries: cpuidEntries(data, Math.min(nent, given, CPUID_MAX)) } : {}) };
  };

const cpuidBuffer = (nent: number): Uint8Array => {
  const buffer = new Uint8Array(kvm_cpuid2.size + CPUID_MAX * kvm_cpuid_entry2.size);
  kvm_cpuid2.write(buffer, { nent });
  return buffer;
};

/** `from`: a system handle whose supported CPUID the entries are added to. */
const setCpuid2: Operation = async (executor, args) => {
  let buffer = cpuidBuffer(0);
  let count = 0;
  if (args.has('from')) {
    const supported = await supportedCpuid(executor, args);
    if (supported !== null) {
      buffer = supported;
      count = kvm_cpuid2.decode(buffer).nent;
    }
  }
  for (const entry of args.items('entries').slice(0, CPUID_MAX - count)) {
    const at = kvm_cpuid2.size + count++ * kvm_cpuid_entry2.size;
    const { function: leaf, index, flags, eax, ebx, ecx, edx } = cpuidFields(entry);
    kvm_cpuid_entry2.write(buffer, { function: leaf, index, flags, eax, ebx, ecx, edx }, at);
  }
  kvm_cpuid2.write(buffer, { nent: args.u32('nent', count) });
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_CPUID2, buffer);
};

const supportedCpuid = async (executor: Executor, args: OpArgs): Promise<Uint8Array | null> => {
  const fd = args.descriptor('from');
  const { outcome, data } = await ioctlInOut(executor, fd, IOCTL.KVM_GET_SUPPORTED_CPUID, cpuidBuffer(CPUID_MAX));
  return outcome.errno === null ? data : null;
};

const cpuidFields = (entry: OpArgs) => ({
  function: entry.u32('function'),
  index: entry.u32('index'),
  flags: entry.u32('flags'),
  eax: entry.u32('eax'),
  ebx: entry.u32('ebx'),
  ecx: entry.u32('ecx'),
  edx: entry.u32('edx'),
});

/** Without an argument, the answer of the call itself: KVM_GET_TSC_KHZ says only that there is a frequency. */
const getTscKhz: Operation = async ({ calls }, args): Promise<OpResult> => {
  const outcome = await calls.ioctl(args.fd, IOCTL.KVM_GET_TSC_KHZ, 0n);
  return outcome.ret > 0n ? { ret: 0, errno: null, positive: true } : finish(outcome);
};

/** Ops on /dev/kvm, and CPUID and TSC, which have the same shape wherever they are asked. */
export const SYSTEM_OPS: Readonly<Record<string, Operation>> = {
  open,
  get_api_version: valueOp(IOCTL.KVM_GET_API_VERSION, 'arg'),
  check_extension: valueOp(IOCTL.KVM_CHECK_EXTENSION, 'cap'),
  get_vcpu_mmap_size: valueOp(IOCTL.KVM_GET_VCPU_MMAP_SIZE, 'arg'),
  create_vm: createVm,
  get_msr_index_list: msrIndexList(IOCTL.KVM_GET_MSR_INDEX_LIST),
  get_msr_feature_index_list: msrIndexList(IOCTL.KVM_GET_MSR_FEATURE_INDEX_LIST),
  get_supported_cpuid: getCpuid(IOCTL.KVM_GET_SUPPORTED_CPUID, false),
  get_emulated_cpuid: getCpuid(IOCTL.KVM_GET_EMULATED_CPUID, false),
  get_cpuid2: getCpuid(IOCTL.KVM_GET_CPUID2, true),
  set_cpuid2: setCpuid2,
  get_tsc_khz: getTscKhz,
  set_tsc_khz: valueOp(IOCTL.KVM_SET_TSC_KHZ, 'khz'),
};
