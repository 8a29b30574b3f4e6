import { Failure, failed, type Result } from '../failure.js';
import { File, OPEN } from '../fs/file.js';
import type { Kernel } from '../kernel.js';
import { KmemOwner } from '../kmem.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { CoalescedMmio } from './coalesced-mmio.js';
import { SharedPage } from './run-pages.js';
import { Vm, type VmType } from './vm.js';
import { VmFile } from './vm-file.js';
import { kvmArchInitVm } from './x86/vm-arch.js';

/** `kvm_create_vm`: a VM with one reference, on the list of all VMs. EINVAL for a type that this host does not support. */
function* makeVm(current: Task, kernel: Kernel, type: VmType): MightSleep<Result<Vm>> {
  const { mm, pid } = current.process;
  if (mm === null) throw new Error('a kernel thread made a VM');
  const id = kernel.allocateVmId();
  const kmem = new KmemOwner(`vm ${id}`);
  const ring = SharedPage.allocate(kernel.pages, kmem, 'kvm_coalesced_mmio_ring');
  if (failed(ring)) return ring;
  const vm = new Vm(kernel, id, type, mm, pid, { kmem, coalesced: new CoalescedMmio(ring) });
  kernel.vms.set(id, vm);
  const refused = kvmArchInitVm(vm);
  if (refused === null) return vm;
  yield* vm.put(current);
  return refused;
}

/** KVM_CREATE_VM (`kvm_dev_ioctl_create_vm`): a descriptor is reserved first (EMFILE). */
export function* createVm(current: Task, kernel: Kernel, argument: bigint): MightSleep<Result<number>> {
  const { files } = current.process;
  if (files.full) return new Failure('EMFILE', 'FD_TABLE_FULL', 'get_unused_fd_flags');
  // An unsigned long that is passed on as such: 2^32 is no type, and not type 0.
  const type = argument < 32n ? Number(argument) : -1;
  if (!kernel.ops.isVmTypeSupported(type))
    return new Failure('EINVAL', 'VM_TYPE_UNSUPPORTED', 'kvm_arch_init_vm', {
      field: 'type',
      given: String(argument),
      allowed: `bits of 0x${kernel.ops.supportedVmTypes.toString(16)}`,
    });
  const vm = yield* makeVm(current, kernel, type);
  return failed(vm) ? vm : files.install(new File(new VmFile(vm), OPEN.RDWR), true);
}
