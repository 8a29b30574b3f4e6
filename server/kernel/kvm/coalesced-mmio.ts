import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { KmemCharge } from '../kmem.js';
import { LazySet } from '../lazy-set.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_coalesced_mmio_zone } from '../uapi/kvm-structs.js';
import { copyStruct } from './copy-struct.js';
import type { IoBus, IoDevice } from './io-bus.js';
import { KMEM_SIZE, kvmallocSize } from './kmem-sizes.js';
import type { SharedPage } from './run-pages.js';
import type { Vcpu } from './vcpu.js';
import type { Vm } from './vm.js';

/** `KVM_COALESCED_MMIO_MAX`: entries of the ring, one of which stays free. */
const RING_ENTRIES = Math.floor((PAGE_SIZE - kvm_coalesced_mmio_ring.size) / kvm_coalesced_mmio.size);

/** `struct kvm_coalesced_mmio_dev`: writes to a zone go to the VM's ring instead of to userspace. */
class CoalescedZone implements IoDevice {
  readonly name = 'coalesced-mmio';
  readonly address: number;
  readonly length: number;
  private readonly charge: KmemCharge;

  constructor(
    private readonly owner: CoalescedMmio,
    vm: Vm,
    readonly addr: bigint,
    readonly size: number,
    readonly pio: boolean,
  ) {
    this.address = Number(addr);
    this.length = size;
    this.charge = vm.kmem.charge('kvm_coalesced_mmio_dev', kvmallocSize(KMEM_SIZE.kvm_coalesced_mmio_dev));
  }

  /** `coalesced_mmio_write`: false when the ring is full, and the write becomes an exit. */
  write(_vcpu: Vcpu, address: number, bytes: Uint8Array): boolean {
    // A zone of size 0 matches any length at its address, but has no room for one.
    if (address + bytes.length > this.address + this.length) return false;
    return this.owner.push(address, bytes, this.pio);
  }

  destructor(): void {
    this.owner.zones.delete(this);
    this.charge.release();
  }
}

/** `kvm->coalesced_zones` and the ring page that every vCPU file maps at page 2. */
export class CoalescedMmio {
  readonly zones = new LazySet<CoalescedZone>();

  constructor(readonly ring: SharedPage) {}

  /** Appends one write; false if the reader has left no room. What userspace did to the indices is not trusted. */
  push(address: number, bytes: Uint8Array, pio: boolean): boolean {
    const page = this.ring.bytes;
    const { first, last } = kvm_coalesced_mmio_ring.decode(page);
    if (last >= RING_ENTRIES || (last + 1) % RING_ENTRIES === first) return false;
    const entry = { phys_addr: BigInt(address), len: bytes.length, pio: pio ? 1 : 0, data: bytes };
    kvm_coalesced_mmio.write(page, entry, kvm_coalesced_mmio_ring.size + last * kvm_coalesced_mmio.size);
    kvm_coalesced_mmio_ring.write(page, { last: (last + 1) % RING_ENTRIES });
    return true;
  }
}

const busFor = (vm: Vm, pio: number): IoBus => (pio === 1 ? vm.buses.pio : vm.buses.mmio);

const decodeZone = (arg: IoctlArg, kernelRef: string): Result<{ addr: bigint; size: number; pio: number }> => {
  const zone = copyStruct(arg, kvm_coalesced_mmio_zone);
  if (failed(zone)) return zone;
  if (zone.pio > 1)
    return new Failure('EINVAL', 'COALESCED_ZONE_KIND', kernelRef, { field: 'pio', given: String(zone.pio), allowed: '0, 1' });
  return zone;
};

/** KVM_REGISTER_COALESCED_MMIO. Zones may overlap; ENOSPC when the bus is full. */
export function* registerCoalescedMmio(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const request = decodeZone(arg, 'kvm_vm_ioctl_register_coalesced_mmio');
  if (failed(request)) return request;
  const zone = new CoalescedZone(vm.coalesced, vm, request.addr, request.size, request.pio === 1);
  yield* vm.slotsLock.lock(current);
  const refused = busFor(vm, request.pio).register(zone);
  if (refused === null) vm.coalesced.zones.add(zone);
  else zone.destructor();
  vm.slotsLock.unlock(current);
  return refused ?? 0;
}

/** KVM_UNREGISTER_COALESCED_MMIO: every zone that holds the given range goes; 0 also if there was none. */
export function* unregisterCoalescedMmio(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const request = decodeZone(arg, 'kvm_vm_ioctl_unregister_coalesced_mmio');
  if (failed(request)) return request;
  const end = request.addr + BigInt(request.size);
  yield* vm.slotsLock.lock(current);
  for (const zone of [...vm.coalesced.zones]) {
    // coalesced_mmio_in_range(): the zone must hold the given range, not the other way round.
    const holds = request.addr >= zone.addr && end <= zone.addr + BigInt(zone.size);
    if (zone.pio === (request.pio === 1) && holds) yield* busFor(vm, request.pio).unregister(current, zone);
  }
  vm.slotsLock.unlock(current);
  return 0;
}
