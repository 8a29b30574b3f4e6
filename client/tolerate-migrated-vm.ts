import { KvmIoeventfdFlag, KvmIrqfdFlag } from '../gen/messages.js';
import { KvmVm, type RpcMethod } from '../gen/services.js';
import { Caller, type CallOptions, type ENDLESS } from './call.js';
import type { Handle } from './handle.js';
import type { KvmError } from './kvm-error.js';
import type { ClientMethod, Reply } from './transport.js';
import type { Vm } from './vm.js';

/** KVM_DEV_VFIO_FILE and KVM_DEV_VFIO_FILE_DEL (include/uapi/linux/kvm.h). */
const VFIO_FILE = 1;
const VFIO_FILE_DEL = 2;

/** A call whose EIO is swallowed: which RPC, and with which arguments. */
interface Tolerated {
  readonly ioctl: string;
  readonly path: string;
  /** Whether the request on the wire is one of these. */
  matches(request: Buffer): boolean;
}

const tolerated = <Req, ReqInit, Res, ResInit>(
  ioctl: string,
  rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
  condition: (request: Req) => boolean,
): Tolerated => ({ ioctl, path: rpc.path, matches: (request) => condition(rpc.requestDeserialize(request)) });

const hasFlag = (flags: number | undefined, flag: number): boolean => ((flags ?? 0) & flag) !== 0;

/**
 * The maintained list: what a VMM does while it takes a device away or tears a VM down, and where it can go on as if it had
 * been done, because the VM that would notice will never run again and closing its descriptors frees the rest. Nothing that
 * asks for a value, adds something or enters the guest is on it: its caller would go on with what is not there.
 */
const TOLERATED: readonly Tolerated[] = [
  // Unplug: the bus entry is freed with the VM. QEMU aborts if this fails (kvm_mem_ioeventfd_del, kvm_io_ioeventfd_del).
  tolerated('KVM_IOEVENTFD deassign', KvmVm.ioeventfd, ({ ioeventfd }) =>
    hasFlag(ioeventfd?.flags, KvmIoeventfdFlag.KVM_IOEVENTFD_FLAG_DEASSIGN),
  ),
  // Unplug: the irqfd stays until the VM is freed. Its eventfd is not free for another VM before: the price of this entry.
  tolerated('KVM_IRQFD deassign', KvmVm.irqfd, ({ irqfd }) => hasFlag(irqfd?.flags, KvmIrqfdFlag.KVM_IRQFD_FLAG_DEASSIGN)),
  // A device's messages are taken out by writing the table anew; no interrupt reaches a VM whose guest has gone.
  tolerated('KVM_SET_GSI_ROUTING', KvmVm.setGsiRouting, () => true),
  // Unmapping a region: the slot maps memory that no vCPU of this VM touches any more. QEMU aborts if this fails.
  tolerated('KVM_SET_USER_MEMORY_REGION delete', KvmVm.setUserMemoryRegion, ({ region }) => region?.memory_size === 0n),
  tolerated('KVM_SET_USER_MEMORY_REGION2 delete', KvmVm.setUserMemoryRegion2, ({ region }) => region?.memory_size === 0n),
  // The ring's zones are freed with the VM.
  tolerated('KVM_UNREGISTER_COALESCED_MMIO', KvmVm.unregisterCoalescedMmio, () => true),
  // The pinned pages belong to the destination since the move: there is nothing to unpin here.
  tolerated('KVM_MEMORY_ENCRYPT_UNREG_REGION', KvmVm.memoryEncryptUnregRegion, () => true),
  // kvm-vfio drops its reference on the group when the device is closed.
  tolerated(
    'KVM_SET_DEVICE_ATTR KVM_DEV_VFIO_FILE_DEL',
    KvmVm.setDeviceAttr,
    ({ device_attr }) => device_attr?.group === VFIO_FILE && device_attr.attr === BigInt(VFIO_FILE_DEL),
  ),
];

/** The ioctls of the list, for documentation. */
export const TOLERATED_IOCTLS: readonly string[] = TOLERATED.map(({ ioctl }) => ioctl);

const NO_BYTES = Buffer.alloc(0);

/** What has been swallowed, and whether it may be. */
class Tolerance {
  readonly swallowed = new Map<string, number>();
  moved = false;

  /** The entry of the list that makes this failure one to swallow. */
  entryFor<ReqInit, Res>(method: ClientMethod<ReqInit, Res>, request: ReqInit, error: KvmError): Tolerated | undefined {
    if (error.errno !== 'EIO' || !(this.moved || error.deathCause?.kind === 'moved')) return undefined;
    return TOLERATED.find(({ path, matches }) => path === method.path && matches(method.requestSerialize(request)));
  }

  count({ ioctl }: Tolerated): void {
    this.swallowed.set(ioctl, (this.swallowed.get(ioctl) ?? 0) + 1);
  }
}

/** Makes the same calls, and answers 0 where a failure is to be swallowed. */
class TolerantCaller extends Caller {
  constructor(
    private readonly inner: Caller,
    private readonly tolerance: Tolerance,
  ) {
    super(inner.transport, inner.identity, inner.options);
  }

  override with(options: CallOptions): TolerantCaller {
    return new TolerantCaller(this.inner.with(options), this.tolerance);
  }

  override async call<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    duration: typeof ENDLESS | null = null,
  ): Promise<Reply<Res>> {
    const reply = await this.inner.call(method, request, duration);
    const entry = reply.error === null ? undefined : this.tolerance.entryFor(method, request, reply.error);
    if (entry === undefined) return reply;
    this.tolerance.count(entry);
    return { error: null, response: method.responseDeserialize(NO_BYTES) };
  }
}

/** A VM whose teardown goes on after its encryption context has moved away. */
export interface TolerantVm {
  /** The VM; vCPUs and devices that it makes are tolerant too. */
  readonly vm: Vm;
  /** The same for a vCPU or a device of the VM that was made before. */
  wrap<Kind extends Handle>(handle: Kind): Kind;
  /** Says that the VM's context has moved: a real host's EIO gives no reason. */
  moved(): void;
  /** How often EIO was swallowed, by ioctl. */
  readonly swallowed: ReadonlyMap<string, number>;
}

/**
 * The remedy on the VMM's side: swallows EIO for a maintained list of ioctls (`TOLERATED_IOCTLS`) on a VM whose encryption
 * context has moved away. It does so only after a move: where the host's error says so (`deathCause`), or the caller has said
 * so by `moved()`. Everything else fails as it did. It works with every post-move policy, and knows none.
 *
 * @example
 * ```ts
 * const { vm: source, moved, swallowed } = tolerateMigratedVm(vm);
 * await destination.moveEncContextFrom(source);
 * moved();
 * await source.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0 });
 * console.log(swallowed); // Map { 'KVM_SET_USER_MEMORY_REGION delete' => 1 } under VM_DEAD
 * ```
 */
export const tolerateMigratedVm = (vm: Vm): TolerantVm => {
  const tolerance = new Tolerance();
  const wrap = <Kind extends Handle>(handle: Kind): Kind => handle.through(new TolerantCaller(handle.caller, tolerance));
  return {
    vm: wrap(vm),
    wrap,
    moved: () => {
      tolerance.moved = true;
    },
    swallowed: tolerance.swallowed,
  };
};
