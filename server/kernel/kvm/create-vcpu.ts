import { Failure, failed, type Result } from '../failure.js';
import { File, OPEN } from '../fs/file.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { DirtyRing } from './dirty-ring.js';
import { RunPages } from './run-pages.js';
import { Vcpu } from './vcpu.js';
import { VcpuFile } from './vcpu-file.js';
import type { Vm } from './vm.js';
import { kvmArchVcpuCreate, kvmArchVcpuDestroy, VcpuArch } from './x86/vcpu-arch.js';
import { KVM_MAX_VCPU_IDS } from './x86/vm-arch.js';

const refuse = (reason: string, details: Record<string, string>, errno: 'EINVAL' | 'EEXIST' = 'EINVAL'): Failure =>
  new Failure(errno, reason, 'kvm_vm_ioctl_create_vcpu', details);

/** What can be refused before anything is made, under kvm->lock. Counts the vCPU that is being made. */
const reserve = (vm: Vm, id: number): Failure | null => {
  if (vm.life.kind === 'moved') {
    const refused = vm.life.policy.admitCreateVcpuLocked(vm);
    if (refused !== null) return refused;
  }
  const { maxVcpus } = vm.arch;
  if (vm.createdVcpus >= maxVcpus) return refuse('TOO_MANY_VCPUS', { object: `vm ${vm.id}`, limit: String(maxVcpus) });
  // kvm_arch_vcpu_precreate(): the first attempt fixes the limit that KVM_CAP_MAX_VCPU_ID has not set.
  vm.arch.maxVcpuIds ||= KVM_MAX_VCPU_IDS;
  if (id >= vm.arch.maxVcpuIds)
    return refuse('VCPU_ID_ABOVE_MAX', { field: 'id', given: String(id), allowed: `below ${vm.arch.maxVcpuIds}` });
  vm.createdVcpus++;
  return null;
};

/** Makes the vCPU itself, which nobody can reach yet. ENOMEM, and whatever the vendor refuses. */
const makeVcpu = (vm: Vm, id: number): Result<Vcpu> => {
  const { pages } = vm.kernel;
  const runPages = RunPages.allocate(pages, vm.kmem);
  if (failed(runPages)) return runPages;
  const vcpu = new Vcpu(vm, id, runPages, (made) => new VcpuArch(made));
  const refused = kvmArchVcpuCreate(vcpu);
  if (refused !== null) {
    vcpu.free();
    return refused;
  }
  if (vm.dirtyRingBytes === 0) return vcpu;
  const ring = DirtyRing.allocate(pages, vm.kmem, vm.dirtyRingBytes);
  if (failed(ring)) {
    destroyVcpu(vcpu);
    return ring;
  }
  vcpu.dirtyRing = ring;
  return vcpu;
};

/** `kvm_vcpu_destroy`. */
export const destroyVcpu = (vcpu: Vcpu): void => {
  kvmArchVcpuDestroy(vcpu);
  vcpu.free();
};

/** Gives the vCPU its index and its descriptor, under kvm->lock. EEXIST, EMFILE. */
function* bringOnline(current: Task, vcpu: Vcpu): MightSleep<Result<number>> {
  const { vm, id } = vcpu;
  if (vm.vcpus.some((other) => other.id === id))
    return refuse('VCPU_ID_TAKEN', { object: `vm ${vm.id}`, field: 'id', given: String(id) }, 'EEXIST');
  // Its mutex keeps every ioctl out until the vCPU counts as online.
  yield* vcpu.mutex.lock(current);
  const fd = current.process.files.install(new File(new VcpuFile(vcpu), OPEN.RDWR), true);
  if (!failed(fd)) {
    vm.get();
    vcpu.index = vm.vcpus.push(vcpu) - 1;
  }
  vcpu.mutex.unlock(current);
  return fd;
}

/**
 * KVM_CREATE_VCPU (`kvm_vm_ioctl_create_vcpu`). Between the two sections under kvm->lock `createdVcpus` is above the
 * number of online vCPUs, which others take as a creation in progress.
 */
export function* createVcpu(current: Task, vm: Vm, argument: bigint): MightSleep<Result<number>> {
  if (argument >= BigInt(KVM_MAX_VCPU_IDS))
    return refuse('VCPU_ID_RANGE', { field: 'id', given: String(argument), allowed: `below ${KVM_MAX_VCPU_IDS}` });
  const id = Number(argument);
  yield* vm.lock.lock(current);
  const refused = reserve(vm, id);
  vm.lock.unlock(current);
  if (refused !== null) return refused;

  const vcpu = makeVcpu(vm, id);
  yield* vm.lock.lock(current);
  const fd = failed(vcpu) ? vcpu : yield* bringOnline(current, vcpu);
  if (failed(fd)) {
    vm.createdVcpus--;
    if (!failed(vcpu)) destroyVcpu(vcpu);
  }
  vm.lock.unlock(current);
  return fd;
}
