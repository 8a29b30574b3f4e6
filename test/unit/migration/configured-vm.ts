import { PAGE_SIZE } from '../../../server/hardware/units.js';
import type { Clock } from '../../../server/kernel/clock.js';
import { Scheduler } from '../../../server/kernel/sched/scheduler.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_enable_cap } from '../../../server/kernel/uapi/kvm-structs.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../../../server/kernel/uapi/x86-structs.js';
import { createSevRig, type SevRig, type Vmm } from '../kernel/kvm/svm/sev-rig.js';
import type { CountingGuest } from './two-hosts.js';

/** Numbers of its vCPUs. */
export const VCPUS = [0, 1] as const;

/** Time goes on whenever somebody looks. */
const tickingClock = (): Clock => {
  let now = 1_000_000n;
  return { now: () => (now += 1000n) };
};

/** Two hosts, each with a clock of its own. */
export const hosts = (): readonly [SevRig, SevRig] => [
  createSevRig({ seed: 'here' }, new Scheduler(), tickingClock()),
  createSevRig({ seed: 'there' }, new Scheduler(), tickingClock()),
];

/** A VM with whatever is made before its vCPUs, and what can be made of it. */
export const createVm = ({ vmm }: SevRig, beforeVcpus: (call: Call) => void = () => {}) => {
  const { fd, vm } = vmm.process.createVm();
  const onVm: Call = (request, arg = 0) => void vmm.process.must(vmm.process.ioctl(fd, request, arg));
  beforeVcpus(onVm);
  const vcpus = VCPUS.map((id) => vmm.process.createVcpu(fd, id));
  const address = vmm.map(null, 16 * PAGE_SIZE);
  vmm.addSlot({ fd }, 0, 0, address, 16 * PAGE_SIZE);
  for (const { fd: vcpuFd } of vcpus) setCpuid(vmm, vcpuFd);
  const [first] = vcpus;
  if (first === undefined) throw new Error('no vCPU');
  const guest: CountingGuest = { vmm, vm, vmFd: fd, vcpuFd: first.fd, vcpu: first.vcpu, address };
  return { guest, onVm, onVcpu: (vcpu: number) => callOn(vmm, vcpus[vcpu]?.fd ?? -1) };
};

/** Makes an ioctl, which has to succeed. */
export type Call = (request: number, arg?: number | Uint8Array) => void;

/** Makes ioctls on a descriptor. */
export const callOn =
  (vmm: Vmm, fd: number): Call =>
  (request, arg = 0) =>
    void vmm.process.must(vmm.process.ioctl(fd, request, arg));

/** Everything that the host has, x2APIC and the TSC-deadline timer among it. */
export const setCpuid = (vmm: Vmm, vcpuFd: number): void => {
  const room = new Uint8Array(kvm_cpuid2.size + 256 * kvm_cpuid_entry2.size);
  room.set(kvm_cpuid2.encode({ nent: 256 }));
  vmm.process.must(vmm.process.ioctl(vmm.process.openKvm(), IOCTL.KVM_GET_SUPPORTED_CPUID, room));
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_SET_CPUID2, room));
};

/** KVM_ENABLE_CAP's argument. */
export const enable = (cap: number, argument: bigint): Uint8Array => kvm_enable_cap.encode({ cap, args: [argument, 0n, 0n, 0n] });
