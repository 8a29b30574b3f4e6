import type { Kernel } from '../kernel.js';
import type { KmemCharge, KmemOwner } from '../kmem.js';
import { LazySet } from '../lazy-set.js';
import type { AddressSpace } from '../mm/address-space.js';
import { Mutex } from '../sched/mutex.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import type { CoalescedMmio } from './coalesced-mmio.js';
import { destroyVm } from './destroy.js';
import type { KvmDevice } from './device.js';
import type { Ioeventfd } from './eventfd/ioeventfd.js';
import { IrqFds } from './eventfd/irqfd.js';
import { createBuses, type VmBuses } from './io-bus.js';
import { KMEM_SIZE } from './kmem-sizes.js';
import { MemoryAttributes } from './memory-attributes.js';
import { Memslots } from './memslots.js';
import type { PostMovePolicy } from './post-move/policy.js';
import { Srcu } from './srcu.js';
import type { Vcpu } from './vcpu.js';
import type { VmLife } from './vm-life.js';
import type { VmPause } from './vm-pause.js';
import type { WriteLog } from './write-log.js';
import { createVmArch, type VmArch } from './x86/vm-arch.js';

/** KVM_CREATE_VM's argument (`KVM_X86_*_VM`). */
export const VM_TYPE = { DEFAULT: 0, SW_PROTECTED: 1, SEV: 2, SEV_ES: 3, SNP: 4, TDX: 5 } as const;
export type VmType = (typeof VM_TYPE)[keyof typeof VM_TYPE];

/** What KVM_DISMANTLE_VM or a post-move policy has done to a VM. */
export type Dismantling = 'not-begun' | 'under-way' | 'done';

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
  dismantling: Dismantling = 'not-begun';
  /** What happens to this VM should its encryption context move away. */
  postMovePolicy: PostMovePolicy;

  readonly srcu: Srcu;
  readonly memslots = new Memslots();
  readonly memoryAttributes: MemoryAttributes;
  readonly buses: VmBuses;
  /** In the order in which they were assigned. */
  readonly ioeventfds = new LazySet<Ioeventfd>();
  readonly irqfds: IrqFds;
  readonly coalesced: CoalescedMmio;
  readonly arch: VmArch;

  /** False once the last descriptor of the VM's file is closed; others may still hold the VM. */
  fileOpen = true;
  /** vCPUs made or being made; above `vcpus.length` while a creation is under way. */
  createdVcpus = 0;
  /** Online vCPUs, by index. */
  readonly vcpus: Vcpu[] = [];
  /** KVM_CREATE_DEVICE's, in order. */
  readonly devices = new LazySet<KvmDevice>();
  /** KVM_CAP_DIRTY_LOG_RING: bytes of each vCPU's ring; 0: dirty bitmaps. */
  dirtyRingBytes = 0;
  /** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: bits of KVM_DIRTY_LOG. */
  manualDirtyLogProtect = 0;
  /** KVM_CAP_HALT_POLL, nanoseconds; null: the module's default. Nothing polls here, since a halt costs nothing. */
  maxHaltPollNs: number | null = null;

  /** Its vCPUs are stopped, or are just being. */
  pause: VmPause | null = null;
  /** Number of the migration by which it is to go, from its beginning to its end; null: there is none. */
  migration: string | null = null;
  /** A migration wants to know what is written. */
  writeLog: WriteLog | null = null;

  private users = 1;
  private readonly charge: KmemCharge;

  /** @param parts what has to be there before; the ring's page is charged to `kmem` */
  constructor(
    readonly kernel: Kernel,
    /** Number for reports; never used again on this host. */
    readonly id: number,
    readonly type: VmType,
    /** The only address space from which ioctls are taken. */
    readonly mm: AddressSpace,
    readonly ownerPid: number,
    parts: { readonly kmem: KmemOwner; readonly coalesced: CoalescedMmio },
  ) {
    ({ kmem: this.kmem, coalesced: this.coalesced } = parts);
    this.charge = this.kmem.charge('kvm', KMEM_SIZE.kvm);
    this.postMovePolicy = kernel.defaultPostMovePolicy;
    this.srcu = new Srcu(kernel.costs.charge);
    this.memoryAttributes = new MemoryAttributes(this.kmem);
    this.buses = createBuses(this.kmem, this.srcu);
    this.irqfds = new IrqFds(this);
    this.arch = createVmArch(this);
  }

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

  /** `kvm_arch_free_vm`: the structure itself. */
  free(): void {
    this.charge.release();
  }
}
