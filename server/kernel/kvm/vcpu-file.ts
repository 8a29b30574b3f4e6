import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import { ANON_INODE_STAT, type File, type FileOperations, type FileStat, type MmapRequest, noopLlseek } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import { type MemoryObject, type ObjectMapping, sigbus } from '../mm/memory-object.js';
import type { Page } from '../mm/page.js';
import { SIGKILL } from '../process/thread.js';
import type { Task } from '../sched/task.js';
import { type MaySleep, type MightSleep, sleeps } from '../sched/wait.js';
import { KVM_PAGE_OFFSET } from '../uapi/constants.js';
import { iocType, KVMIO } from '../uapi/ioc.js';
import { IOCTL } from '../uapi/ioctls.js';
import { kvm_signal_mask } from '../uapi/kvm-structs.js';
import { copyStruct } from './copy-struct.js';
import { gate } from './gate.js';
import { vcpuStatsFd } from './stats-fd.js';
import type { Vcpu } from './vcpu.js';
import { kvmArchVcpuRun } from './x86/run.js';
import { kvmArchVcpuIoctl } from './x86/vcpu-ioctl.js';

const SIGSTOP = 19;
/** `sizeof(sigset_t)` of the kernel. */
const SIGSET_SIZE = 8;

/** The file of a vCPU (`kvm_vcpu_fops`), and what is mapped from it. It keeps the VM alive, not the vCPU, which needs no help. */
export class VcpuFile implements FileOperations, MemoryObject {
  readonly name: string;
  readonly llseek = noopLlseek;
  readonly mappings = new Set<ObjectMapping>();

  constructor(readonly vcpu: Vcpu) {
    this.name = `anon_inode:kvm-vcpu:${vcpu.id}`;
  }

  stat(): FileStat {
    return ANON_INODE_STAT;
  }

  /** `kvm_vcpu_ioctl`: gate, type byte, the vCPU's mutex (killable), then the call. */
  ioctl(current: Task, _file: File, request: number, arg: IoctlArg): MaySleep<Result<number>> {
    const { vcpu } = this;
    const admission = gate(current, vcpu.vm, { scope: 'vcpu', request, arg, vcpu });
    if (admission.kind !== 'run') return admission.kind === 'refuse' ? admission.failure : admission.ret;
    if (iocType(request) !== KVMIO)
      return new Failure('EINVAL', 'UNKNOWN_IOCTL', 'kvm_vcpu_ioctl', { request: `0x${request.toString(16)}` });
    return vcpu.mutex.withKillable(current, () => {
      const { life } = vcpu.vm;
      const refused = life.kind === 'moved' ? life.policy.admitVcpuLocked(vcpu) : null;
      const result = refused ?? vcpuIoctl(current, vcpu, request, arg);
      return sleeps(result) ? result : reported(vcpu, request, result);
    });
  }

  /** `kvm_vcpu_mmap`: everything can be mapped; what is not there is a SIGBUS at the touch. */
  mmap(_current: Task, request: MmapRequest): Result<MemoryObject> {
    const first = request.offset / PAGE_SIZE;
    const last = first + Math.ceil(request.length / PAGE_SIZE) - 1;
    if ((this.inDirtyRing(first) || this.inDirtyRing(last)) && (request.execute || !request.shared))
      return new Failure('EINVAL', 'DIRTY_RING_MAPPING', 'kvm_vcpu_mmap', {
        field: 'flags',
        allowed: 'MAP_SHARED, no PROT_EXEC',
      });
    return this;
  }

  /** `kvm_vcpu_fault`. */
  fault(index: number): Result<Page> {
    const { runPages, dirtyRing, vm } = this.vcpu;
    if (index === KVM_PAGE_OFFSET.RUN) return runPages.run.page;
    if (index === KVM_PAGE_OFFSET.PIO) return runPages.pio.page;
    if (index === KVM_PAGE_OFFSET.COALESCED_MMIO) return vm.coalesced.ring.page;
    return dirtyRing?.pages[index - KVM_PAGE_OFFSET.DIRTY_LOG]?.page ?? sigbus('kvm_vcpu_fault');
  }

  /** A mapping holds the file, and the file the VM. */
  attach(mapping: ObjectMapping): void {
    this.mappings.add(mapping);
    this.vcpu.vm.get();
  }

  detach(mapping: ObjectMapping): void {
    this.mappings.delete(mapping);
    const { vm } = this.vcpu;
    vm.kernel.work(`fput of ${this.name}`, (current) => vm.put(current));
  }

  *release(current: Task): MightSleep<void> {
    this.vcpu.fileOpen = false;
    yield* this.vcpu.vm.put(current);
  }

  private inDirtyRing(page: number): boolean {
    const first = KVM_PAGE_OFFSET.DIRTY_LOG;
    return page >= first && page < first + this.vcpu.vm.dirtyRingBytes / PAGE_SIZE;
  }
}

/** What a vCPU has told userspace is the sanitizer's to see; none of the calls that wait tells anything. */
const reported = (vcpu: Vcpu, request: number, result: Result<number>): Result<number> => {
  if (!failed(result)) vcpu.vm.kernel.sanitizer.carried.reported(vcpu, request);
  return result;
};

/** The switch of `kvm_vcpu_ioctl`, with the vCPU's mutex held; what has a meaning on every architecture is x86's as well. */
const vcpuIoctl = (current: Task, vcpu: Vcpu, request: number, arg: IoctlArg): MaySleep<Result<number>> => {
  switch (request) {
    case IOCTL.KVM_RUN:
      if (arg.value !== 0n)
        return new Failure('EINVAL', 'ARGUMENT_NOT_ZERO', 'kvm_vcpu_ioctl', { field: 'arg', given: String(arg.value) });
      return kvmArchVcpuRun(current, vcpu);
    case IOCTL.KVM_SET_SIGNAL_MASK:
      return setSignalMask(vcpu, arg);
    case IOCTL.KVM_GET_STATS_FD:
      return vcpuStatsFd(current, vcpu);
    default:
      return kvmArchVcpuIoctl(current, vcpu, request, arg);
  }
};

/** KVM_SET_SIGNAL_MASK: the signals that KVM_RUN blocks instead of the thread's own; NULL goes back to those. */
const setSignalMask = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  if (arg.value === 0n) {
    vcpu.arch.signalMask = null;
    return 0;
  }
  const head = copyStruct(arg, kvm_signal_mask);
  if (failed(head)) return head;
  if (head.len !== SIGSET_SIZE)
    return new Failure('EINVAL', 'SIGNAL_MASK_LENGTH', 'kvm_vcpu_ioctl', {
      field: 'len',
      given: String(head.len),
      allowed: String(SIGSET_SIZE),
    });
  const bytes = arg.user.copyIn(arg.value + BigInt(kvm_signal_mask.size), SIGSET_SIZE);
  if (failed(bytes)) return bytes;
  const blocked = new Set<number>();
  for (let bit = 0; bit < 8 * SIGSET_SIZE; bit++) if (((bytes[bit >>> 3] ?? 0) >>> (bit & 7)) & 1) blocked.add(bit + 1);
  blocked.delete(SIGKILL);
  blocked.delete(SIGSTOP);
  vcpu.arch.signalMask = blocked;
  return 0;
};
