import { Failure, failed, type Result } from '../../failure.js';
import { type EventFd, eventFdGet } from '../../fs/eventfd.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { KmemCharge } from '../../kmem.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { KVM_IOEVENTFD_FLAG } from '../../uapi/constants.js';
import { kvm_ioeventfd } from '../../uapi/kvm-structs.js';
import type { StructValue } from '../../uapi/struct.js';
import { copyStruct } from '../copy-struct.js';
import type { IoBus, IoDevice, VmBuses } from '../io-bus.js';
import { KMEM_SIZE } from '../kmem-sizes.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';

type Arguments = StructValue<typeof kvm_ioeventfd>;

/** `KVM_IOEVENTFD_VALID_FLAG_MASK`: every bit below `kvm_ioeventfd_flag_nr_max`, the kernel's own bus number included. */
const VALID_FLAGS = 0x1f;
const LENGTHS: ReadonlySet<number> = new Set([0, 1, 2, 4, 8]);

/** `ioeventfd_bus_from_flags`. */
const busFromFlags = (flags: number): keyof VmBuses => {
  if (flags & KVM_IOEVENTFD_FLAG.PIO) return 'pio';
  return flags & KVM_IOEVENTFD_FLAG.VIRTIO_CCW_NOTIFY ? 'ccw' : 'mmio';
};

/** `struct _ioeventfd`: a guest's write to an address signals an eventfd, without an exit. */
export class Ioeventfd implements IoDevice {
  readonly name = 'ioeventfd';
  readonly ioeventfd = true;
  readonly address: number;
  private readonly charge: KmemCharge;

  constructor(
    private readonly vm: Vm,
    readonly bus: keyof VmBuses,
    readonly eventfd: EventFd,
    readonly addr: bigint,
    /** Bytes a write must have; 0: any number. */
    readonly length: number,
    /** Null: a wildcard, whatever is written. */
    readonly datamatch: bigint | null,
  ) {
    this.address = Number(addr);
    this.charge = vm.kmem.charge('_ioeventfd', KMEM_SIZE._ioeventfd);
  }

  /** `ioeventfd_write`. */
  write(_vcpu: Vcpu, address: number, bytes: Uint8Array): boolean {
    if (address !== this.address) return false;
    if (this.length !== 0 && (bytes.length !== this.length || !this.matches(bytes))) return false;
    this.eventfd.signal();
    return true;
  }

  /** `ioeventfd_check_collision`: whether both cannot be on one VM. */
  collidesWith(other: Ioeventfd): boolean {
    if (this.bus !== other.bus || this.addr !== other.addr) return false;
    if (this.length === 0 || other.length === 0) return true;
    if (this.length !== other.length) return false;
    return this.datamatch === null || other.datamatch === null || this.datamatch === other.datamatch;
  }

  /** `ioeventfd_release`: the bus no longer holds it. */
  destructor(): void {
    this.vm.ioeventfds.delete(this);
    this.charge.release();
  }

  private matches(bytes: Uint8Array): boolean {
    if (this.datamatch === null) return true;
    let value = 0n;
    for (let index = bytes.length - 1; index >= 0; index--) value = (value << 8n) | BigInt(bytes[index] ?? 0);
    return value === this.datamatch;
  }
}

const refuse = (reason: string, field: string, given: bigint | number, allowed: string): Failure =>
  new Failure('EINVAL', reason, 'kvm_assign_ioeventfd', { field, given: `0x${given.toString(16)}`, allowed });

const busOf = (vm: Vm, bus: keyof VmBuses): IoBus => vm.buses[bus];

/** `kvm_assign_ioeventfd_idx`. EBADF and EINVAL for the fd, EEXIST for a collision, ENOSPC for a full bus. */
function* assignOn(current: Task, vm: Vm, bus: keyof VmBuses, args: Arguments): MightSleep<Failure | null> {
  const eventfd = eventFdGet(current, args.fd, 'fd');
  if (failed(eventfd)) return eventfd;
  const datamatch = args.flags & KVM_IOEVENTFD_FLAG.DATAMATCH ? args.datamatch : null;
  const added = new Ioeventfd(vm, bus, eventfd, args.addr, args.len, datamatch);
  yield* vm.slotsLock.lock(current);
  let refused: Failure | null = null;
  for (const other of vm.ioeventfds)
    if (other.collidesWith(added)) {
      refused = new Failure('EEXIST', 'IOEVENTFD_COLLISION', 'ioeventfd_check_collision', {
        object: `vm ${vm.id}`,
        bus,
        addr: `0x${args.addr.toString(16)}`,
      });
      break;
    }
  refused ??= busOf(vm, bus).register(added);
  if (refused === null) vm.ioeventfds.add(added);
  else added.destructor();
  vm.slotsLock.unlock(current);
  return refused;
}

/** `kvm_deassign_ioeventfd_idx`. ENOENT unless everything matches; only a wildcard's datamatch is not looked at. */
function* deassignOn(current: Task, vm: Vm, bus: keyof VmBuses, args: Arguments): MightSleep<Failure | null> {
  const eventfd = eventFdGet(current, args.fd, 'fd');
  if (failed(eventfd)) return eventfd;
  const datamatch = args.flags & KVM_IOEVENTFD_FLAG.DATAMATCH ? args.datamatch : null;
  yield* vm.slotsLock.lock(current);
  let found: Ioeventfd | undefined;
  for (const one of vm.ioeventfds) {
    const same = one.bus === bus && one.eventfd === eventfd && one.addr === args.addr && one.length === args.len;
    if (!same || one.datamatch !== datamatch) continue;
    found = one;
    break;
  }
  if (found !== undefined) yield* busOf(vm, bus).unregister(current, found);
  vm.slotsLock.unlock(current);
  if (found !== undefined) return null;
  return new Failure('ENOENT', 'IOEVENTFD_NOT_FOUND', 'kvm_deassign_ioeventfd_idx', {
    object: `vm ${vm.id}`,
    bus,
    addr: `0x${args.addr.toString(16)}`,
  });
}

/** `kvm_deassign_ioeventfd`: the entry on the fast bus goes along; what becomes of it decides nothing. */
function* deassign(current: Task, vm: Vm, args: Arguments): MightSleep<Failure | null> {
  const bus = busFromFlags(args.flags);
  const result = yield* deassignOn(current, vm, bus, args);
  if (args.len === 0 && bus === 'mmio') yield* deassignOn(current, vm, 'fastMmio', args);
  return result;
}

/** `kvm_assign_ioeventfd`: every check of the arguments comes before the fd is looked at. */
function* assign(current: Task, vm: Vm, args: Arguments): MightSleep<Failure | null> {
  if (!LENGTHS.has(args.len)) return refuse('IOEVENTFD_LENGTH', 'len', args.len, '0, 1, 2, 4, 8');
  if (args.len !== 0 && args.addr + BigInt(args.len) >= 2n ** 64n)
    return refuse('IOEVENTFD_WRAPS', 'addr', args.addr, 'addr + len below 2^64');
  if ((args.flags & ~VALID_FLAGS) !== 0) return refuse('IOEVENTFD_FLAGS', 'flags', args.flags, `0x${VALID_FLAGS.toString(16)}`);
  if (args.len === 0 && (args.flags & KVM_IOEVENTFD_FLAG.DATAMATCH) !== 0)
    return refuse('IOEVENTFD_DATAMATCH_WITHOUT_LENGTH', 'flags', args.flags, 'no DATAMATCH where len is 0');
  const bus = busFromFlags(args.flags);
  const refused = yield* assignOn(current, vm, bus, args);
  if (refused !== null || args.len !== 0 || bus !== 'mmio') return refused;
  const fastRefused = yield* assignOn(current, vm, 'fastMmio', args);
  if (fastRefused !== null) yield* deassignOn(current, vm, bus, args);
  return fastRefused;
}

/** KVM_IOEVENTFD (`kvm_ioeventfd`). */
export function* kvmIoeventfd(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const args = copyStruct(arg, kvm_ioeventfd);
  if (failed(args)) return args;
  const refused = yield* (args.flags & KVM_IOEVENTFD_FLAG.DEASSIGN ? deassign : assign)(current, vm, args);
  return refused ?? 0;
}
