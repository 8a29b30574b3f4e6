import type { Json, JsonObject } from '../../conformance/json.js';
import type { Random } from '../random.js';

export const PAGE = 0x1000;
/** Slot 0 of every VM: RAM at 0 with its guest programs, which nothing else touches. */
export const RAM_BYTES = 0x10000;
/** The other slots lie between RAM and here, in reach of real mode. */
export const ARENA_END = 0x100000;
/** Bytes of the mapping that backs a VM's slots. */
const MAPPING_BYTES = 0x100000;

export interface SlotModel {
  gpa: number;
  size: number;
  /** Offset of the backing in the VM's mapping. */
  offset: number;
  flags: number;
}

export interface IoeventfdModel {
  readonly addr: number;
  readonly len: number;
  readonly datamatch: number;
  readonly flags: number;
  readonly eventfd: string;
}

/** What the generator believes to be there: only so that calls come near what is. */
export interface VmModel {
  readonly name: string;
  readonly map: string;
  /** Names by id. */
  readonly vcpus: Map<number, string>;
  readonly closed: Set<string>;
  readonly slots: Map<number, SlotModel>;
  readonly guestMemfds: string[];
  readonly ioeventfds: IoeventfdModel[];
  irqchip: 'user' | 'kernel' | 'split';
}

/** A sequence in the making. */
export class World {
  readonly ops: JsonObject[] = [];
  readonly vms: VmModel[] = [];
  readonly eventfds: string[] = [];
  private names = 0;

  constructor(readonly random: Random) {}

  add(op: string, fields: Readonly<Record<string, Json>> = {}): void {
    this.ops.push({ op, ...fields });
  }

  name(prefix: string): string {
    return `${prefix}${++this.names}`;
  }

  /** Now and then something that cannot be right. */
  get mistaken(): boolean {
    return this.random.chance(0.12);
  }

  createVm(): VmModel {
    const vm: VmModel = {
      name: this.name('vm'),
      map: this.name('m'),
      vcpus: new Map(),
      closed: new Set(),
      slots: new Map(),
      guestMemfds: [],
      ioeventfds: [],
      irqchip: 'user',
    };
    const flags = this.random.below(2);
    this.add('create_vm', { sys: 'sys', type: 0, as: vm.name });
    this.add('mmap', { as: vm.map, size: MAPPING_BYTES });
    this.setRegion(vm, 0, { gpa: 0, size: RAM_BYTES, offset: 0, flags });
    this.vms.push(vm);
    return vm;
  }

  setRegion(vm: VmModel, slot: number, { gpa, size, offset, flags }: SlotModel): void {
    const backing = { map: vm.map, off: offset };
    this.add('set_user_memory_region', { vm: vm.name, slot, flags, gpa, size, backing });
  }

  /** An eventfd, made if there are few. */
  eventfd(): string {
    if (this.eventfds.length < 4) {
      const name = this.name('e');
      this.add('eventfd', { as: name });
      this.eventfds.push(name);
      return name;
    }
    return this.random.pick(this.eventfds);
  }

  /** A vCPU whose descriptor is open; null: there is none. */
  vcpu(vm: VmModel): string | null {
    const open = [...vm.vcpus.values()].filter((name) => !vm.closed.has(name));
    return open.length === 0 ? null : this.random.pick(open);
  }

  /** A descriptor that is not of the kind that is asked for, or is none. */
  wrongDescriptor(): string | number {
    return this.random.pick<string | number>([-1, 'sys', 99_999, ...this.vms.map(({ name }) => name), ...this.eventfds]);
  }
}

/** One thing that a sequence may do next. */
export type Move = (world: World, vm: VmModel) => void;
