import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Kernel } from '../../kernel.js';
import { KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET } from '../../uapi/constants.js';
import { IOCTL } from '../../uapi/ioctls.js';
import { kvm_device_attr } from '../../uapi/kvm-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';
import { copyU64In, copyU64Out } from './copy-word.js';

/** Frequency of the host's TSC: the base clock of an EPYC 7763. */
export const TSC_KHZ = 2_450_000;
/** `kvm_caps.max_guest_tsc_khz` with the TSC ratio MSR of AMD. */
const MAX_GUEST_TSC_KHZ = 0x7fff_ffff;

const MASK = (1n << 64n) - 1n;
const scaled = (nanoseconds: bigint, khz: number): bigint => (nanoseconds * BigInt(khz)) / 1_000_000n;

/** RDTSC on the host. */
export const hostTsc = (kernel: Kernel): bigint => scaled(kernel.clock.now(), TSC_KHZ);

/** `kvm_read_l1_tsc`: what the guest reads now. */
export const guestTsc = ({ vm, arch }: Vcpu): bigint => (scaled(vm.kernel.clock.now(), arch.tscKhz) + arch.tscOffset) & MASK;

/** `kvm_synchronize_tsc`: the guest's TSC is `value` now. */
export const setGuestTsc = (vcpu: Vcpu, value: bigint): void => {
  const { vm, arch } = vcpu;
  arch.tscOffset = (value - scaled(vm.kernel.clock.now(), arch.tscKhz)) & MASK;
};

/** The TSCs of all vCPUs, in their order, at one moment. */
export const guestTscs = ({ kernel, vcpus }: Vm): readonly bigint[] => {
  const now = kernel.clock.now();
  return vcpus.map(({ arch }) => (scaled(now, arch.tscKhz) + arch.tscOffset) & MASK);
};

/** The other way round: those that ran in step go on in step. */
export const setGuestTscs = ({ kernel, vcpus }: Vm, values: readonly bigint[]): void => {
  const now = kernel.clock.now();
  for (const [index, { arch }] of vcpus.entries()) arch.tscOffset = ((values[index] ?? 0n) - scaled(now, arch.tscKhz)) & MASK;
};

const refuseKhz = (khz: number): Failure =>
  new Failure('EINVAL', 'TSC_KHZ_RANGE', 'kvm_arch_vcpu_ioctl', {
    field: 'tsc_khz',
    given: String(khz),
    allowed: `below ${MAX_GUEST_TSC_KHZ}`,
  });

/** `(u32)arg`; 0 stands for the host's frequency. */
const wantedKhz = (arg: IoctlArg): Result<number> => {
  const khz = Number(BigInt.asUintN(32, arg.value));
  if (khz >= MAX_GUEST_TSC_KHZ) return refuseKhz(khz);
  return khz === 0 ? TSC_KHZ : khz;
};

/** KVM_SET_TSC_KHZ on a vCPU. Its TSC goes on from where it is. */
export const setTscKhz = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const khz = wantedKhz(arg);
  if (failed(khz)) return khz;
  const now = guestTsc(vcpu);
  vcpu.arch.tscKhz = khz;
  setGuestTsc(vcpu, now);
  return 0;
};

/** KVM_SET_TSC_KHZ on a VM: for the vCPUs to come. EINVAL once there is one. */
export const setVmTscKhz = (vm: Vm, arg: IoctlArg): Result<number> => {
  const khz = wantedKhz(arg);
  if (failed(khz)) return khz;
  if (vm.createdVcpus > 0)
    return new Failure('EINVAL', 'VCPUS_CREATED', 'kvm_arch_vm_ioctl', { created_vcpus: String(vm.createdVcpus) });
  vm.arch.defaultTscKhz = khz;
  return 0;
};

/** KVM_SET/GET/HAS_DEVICE_ATTR on a vCPU (`kvm_vcpu_ioctl_device_attr`): the TSC offset is all there is. ENXIO else. */
export const tscAttribute = (vcpu: Vcpu, request: number, arg: IoctlArg): Result<number> => {
  const attribute = copyStruct(arg, kvm_device_attr);
  if (failed(attribute)) return attribute;
  const { group, attr, addr } = attribute;
  if (group !== KVM_VCPU_TSC_CTRL || attr !== BigInt(KVM_VCPU_TSC_OFFSET))
    return new Failure('ENXIO', 'VCPU_ATTRIBUTE_UNKNOWN', 'kvm_arch_tsc_has_attr', { group: String(group), attr: String(attr) });
  if (request === IOCTL.KVM_HAS_DEVICE_ATTR) return 0;
  if (request === IOCTL.KVM_GET_DEVICE_ATTR) return copyU64Out(arg.user, addr, vcpu.arch.tscOffset) ?? 0;
  const offset = copyU64In(arg.user, addr);
  if (failed(offset)) return offset;
  vcpu.arch.tscOffset = offset;
  return 0;
};
