import type { Kernel } from '../kernel.js';
import { KmemOwner } from '../kmem.js';
import type { AddressSpace } from '../mm/address-space.js';
import { Mutex } from '../sched/mutex.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { destroyVm } from './destroy.js';
import type { KvmDevice } from './device.js';
import type { VmBuses } from './io-bus.js';
import type { IrqFds } from './eventfd.js';
import type { Memslots } from './memslots.js';
import type { PostMovePolicy } from './post-move/policy.js';
import type { Srcu } from './srcu.js';
import type { Vcpu } from './vcpu.js';
import type { VmLife } from './vm-life.js';
import type { VmArch } from './x86/vm-arch.js';

/** KVM_CREATE_VM's argument (`KVM_X86_*_VM`). */
export const VM_TYPE = { DEFAULT: 0, SW_PROTECTED: 1, SEV: 2, SEV_ES: 3, SNP: 4, TDX: 5 } as const;
export type VmType = (typeof VM_TYPE)[keyof typeof VM_TYPE];

/** What `createVm` puts together; each part is its own file's. */
export interface VmParts {
  readonly memslots: Memslots;
  readonly buses: VmBuses;
  readonly irqfds: IrqFds;
  readonly srcu: Srcu;
  readonly arch: VmArch;
}

/**
 * `struct kvm`. Locks in the order in which they nest: `lock`, then the vCPUs' mutexes, then `slotsLock`, then
 * `irqLock`. It lives as long as somebody holds a reference: its file, vCPU files, devices, guest_memfds, mirrors.
 */
export class Vm {
  readonly lock = new Mutex('kvm->lock');
  readonly slotsLock = new Mutex('kvm->slots_lock');
  readonly irqLock = new Mutex('kvm->irq_lock');
  readonly kmem: KmemOwner;
  life: VmLife = { kind: 'alive' };
  /** What happens to this VM should its encryption context move away. */
  postMovePolicy: PostMovePolicy;
  /** vCPUs made or being made; above `vcpus.length` while a creation is under way. */
  createdVcpus = 0;
  /** Online vCPUs, by index. */
  readonly vcpus: Vcpu[] = [];
  /** KVM_CREATE_DEVICE's, in order. */
  readonly devices: KvmDevice[] = [];
  private users = 1;

  constructor(
    readonly kernel: Kernel,
    /** Number for reports; never used again on this host. */
    readonly id: number,
    readonly type: VmType,
    /** The only address space from which ioctls are taken. */
    readonly mm: AddressSpace,
    readonly ownerPid: number,
    parts: (vm: Vm) => VmParts,
  ) {
    this.kmem = new KmemOwner(`vm ${id}`);
    this.postMovePolicy = kernel.defaultPostMovePolicy;
    ({ memslots: this.memslots, buses: this.buses, irqfds: this.irqfds, srcu: this.srcu, arch: this.arch } = parts(this));
  }

  readonly memslots: Memslots;
  readonly buses: VmBuses;
  readonly irqfds: IrqFds;
  readonly srcu: Srcu;
  readonly arch: VmArch;

  /** `kvm_get_kvm`. */
  get(): this {
    if (this.users === 0) throw new Error(`vm ${this.id}: reference taken after destruction`);
    this.users++;
    return this;
  }

  /** `kvm_put_kvm`: the last one destroys the VM. */
  *put(current: Task): MightSleep<void> {
    if (--this.users === 0) yield* destroyVm(current, this);
  }

  get references(): number {
    return this.users;
  }
}
