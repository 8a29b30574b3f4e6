import { Failure } from '../failure.js';
import type { KmemCharge, KmemOwner } from '../kmem.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KMEM_SIZE, kvmallocSize } from './kmem-sizes.js';
import type { Srcu } from './srcu.js';
import type { Vcpu } from './vcpu.js';

/** `NR_IOBUS_DEVS`: devices on a bus that are no ioeventfds. */
const NR_IOBUS_DEVS = 1000;

/**
 * `struct kvm_io_device` with its range: something in the kernel that answers a guest's accesses. Addresses are plain
 * numbers; one above 2^53 (an ioeventfd may have it) is rounded, and lies where no guest's access gets.
 */
export interface IoDevice {
  /** For reports: `ioapic`, `ioeventfd`. */
  readonly name: string;
  readonly address: number;
  /** Bytes; 0 matches an access of any length at exactly `address`. */
  readonly length: number;
  /** ioeventfds do not count towards the limit of a bus. */
  readonly ioeventfd?: boolean;
  /** @returns true if the access was this device's; false hands it to the next one in its range. */
  write?(vcpu: Vcpu, address: number, bytes: Uint8Array): boolean;
  /** @returns the data, or null to hand the access on. */
  read?(vcpu: Vcpu, address: number, length: number): Uint8Array | null;
  /** The bus that held it is destroyed, or it was unregistered. */
  destructor?(): void;
}

/** `kvm_io_bus_cmp`: 0 if an access of `length` bytes at `address` lies inside the device's range. */
const compare = (address: number, length: number, device: IoDevice): number => {
  if (address < device.address) return -1;
  if (device.length === 0) return address > device.address ? 1 : 0;
  return address + length > device.address + device.length ? 1 : 0;
};

/** `struct kvm_io_bus`: devices in the order of their addresses. Changed under slots_lock, read under SRCU. */
export class IoBus {
  private devices: IoDevice[] = [];
  private ioeventfds = 0;
  /** Null: taken away by a dismantling or by the VM's destruction (`kvm->buses[i] == NULL`). */
  private charge: KmemCharge | null;

  constructor(
    readonly name: string,
    kmem: KmemOwner,
    private readonly srcu: Srcu,
  ) {
    this.charge = kmem.charge('kvm_io_bus', this.bytes);
  }

  get list(): readonly IoDevice[] {
    return this.devices;
  }

  /** `kvm_io_bus_write`: the first device in range that takes the access. */
  write(vcpu: Vcpu, address: number, bytes: Uint8Array): 'handled' | 'unhandled' {
    for (let index = this.first(address, bytes.length); index < this.devices.length; index++) {
      const device = this.devices[index];
      if (device === undefined || compare(address, bytes.length, device) !== 0) break;
      if (device.write?.(vcpu, address, bytes)) return 'handled';
    }
    return 'unhandled';
  }

  /** `kvm_io_bus_read`: the data of the first device in range that answers, or null. */
  read(vcpu: Vcpu, address: number, length: number): Uint8Array | null {
    for (let index = this.first(address, length); index < this.devices.length; index++) {
      const device = this.devices[index];
      if (device === undefined || compare(address, length, device) !== 0) break;
      const data = device.read?.(vcpu, address, length);
      if (data) return data;
    }
    return null;
  }

  /** `kvm_io_bus_register_dev`, under slots_lock. ENOSPC beyond 1000 devices, ENOMEM when the bus is gone. */
  register(device: IoDevice): Failure | null {
    if (this.charge === null) return new Failure('ENOMEM', 'BUS_GONE', 'kvm_io_bus_register_dev', { bus: this.name });
    if (this.devices.length - this.ioeventfds > NR_IOBUS_DEVS - 1)
      return new Failure('ENOSPC', 'BUS_FULL', 'kvm_io_bus_register_dev', { bus: this.name, limit: String(NR_IOBUS_DEVS) });
    const later = this.devices.findIndex((other) => compare(other.address, other.length, device) > 0);
    this.devices.splice(later < 0 ? this.devices.length : later, 0, device);
    if (device.ioeventfd) this.ioeventfds++;
    // The old table is freed by call_srcu: nobody waits for it since 6.18.
    this.charge.resize(this.bytes);
    return null;
  }

  /** `kvm_io_bus_unregister_dev`, under slots_lock: waits until no vCPU is in the device, then destroys it. */
  *unregister(current: Task, device: IoDevice): MightSleep<void> {
    const index = this.devices.indexOf(device);
    if (this.charge === null || index < 0) return;
    this.devices.splice(index, 1);
    if (device.ioeventfd) this.ioeventfds--;
    this.charge.resize(this.bytes);
    yield* this.srcu.synchronize(current);
    device.destructor?.();
  }

  /** True once the table has been taken away. */
  get gone(): boolean {
    return this.charge === null;
  }

  /** Takes the table away (`kvm->buses[i] = NULL`) and returns its devices, whose destructors the caller runs. */
  take(): readonly IoDevice[] {
    if (this.charge === null) return [];
    this.charge.release();
    this.charge = null;
    const { devices } = this;
    this.devices = [];
    this.ioeventfds = 0;
    return devices;
  }

  /** `kvm_io_bus_destroy`, when nobody can be in a device any more. */
  destroy(): void {
    for (const device of this.take()) device.destructor?.();
  }

  private get bytes(): number {
    return kvmallocSize(KMEM_SIZE.kvm_io_bus + this.devices.length * KMEM_SIZE.kvm_io_range);
  }

  /**
   * `kvm_io_bus_get_first_dev`: one device whose range holds the access, and back to the first of its neighbours that do.
   * Ranges that overlap without being the same are in no order, so the search has to take the steps of the kernel's
   * `bsearch` to come to the same device.
   */
  private first(address: number, length: number): number {
    let found = this.search(address, length);
    if (found === this.devices.length) return found;
    while (found > 0 && this.compareAt(found - 1, address, length) === 0) found--;
    return found;
  }

  /** `bsearch`: beyond the last device if there is none. */
  private search(address: number, length: number): number {
    let base = 0;
    for (let left = this.devices.length; left > 0; left >>= 1) {
      const pivot = base + (left >> 1);
      const order = this.compareAt(pivot, address, length);
      if (order === 0) return pivot;
      if (order < 0) continue;
      base = pivot + 1;
      left--;
    }
    return this.devices.length;
  }

  private compareAt(index: number, address: number, length: number): number {
    const device = this.devices[index];
    if (device === undefined) throw new Error(`no device ${index} on the ${this.name} bus`);
    return compare(address, length, device);
  }
}

/** `kvm->buses`. */
export interface VmBuses {
  readonly mmio: IoBus;
  readonly pio: IoBus;
  /** s390's; on x86 an ioeventfd can be put there, and never fires. */
  readonly ccw: IoBus;
  /** ioeventfds of length 0 on MMIO: tried before the instruction is decoded. */
  readonly fastMmio: IoBus;
}

export const createBuses = (kmem: KmemOwner, srcu: Srcu): VmBuses => ({
  mmio: new IoBus('mmio', kmem, srcu),
  pio: new IoBus('pio', kmem, srcu),
  ccw: new IoBus('virtio-ccw', kmem, srcu),
  fastMmio: new IoBus('fast-mmio', kmem, srcu),
});
