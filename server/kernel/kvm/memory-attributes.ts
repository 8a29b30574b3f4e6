import { type Gfn, gfn, PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { KmemCharge, KmemOwner } from '../kmem.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_MEMORY_ATTRIBUTE } from '../uapi/constants.js';
import { kvm_memory_attributes } from '../uapi/kvm-structs.js';
import { copyStruct } from './copy-struct.js';
import { KMEM_SIZE } from './kmem-sizes.js';
import type { Vm } from './vm.js';
import { kvmMmuUnmapGfnRange } from './x86/mmu.js';

/** Slots of one xarray node. */
const XA_SLOTS = 64;

/** Guest frames [first, last). */
interface Range {
  readonly first: number;
  readonly last: number;
}

/**
 * `kvm->mem_attr_array`: which guest frames are private, the only attribute there is. Kept as ranges; charged as the
 * nodes of the xarray that the kernel keeps, one entry for each frame.
 */
export class MemoryAttributes {
  private ranges: Range[] = [];
  private charge: KmemCharge | null = null;

  constructor(private readonly kmem: KmemOwner) {}

  /** `kvm_mem_is_private`. */
  isPrivate(frame: Gfn): boolean {
    return this.ranges.some(({ first, last }) => frame >= first && frame < last);
  }

  /** `kvm_range_has_memory_attributes`: true if every frame of [first, last) is private (or none is). */
  allAre(priv: boolean, first: Gfn, last: Gfn): boolean {
    const touching = this.ranges.filter((range) => range.first < last && range.last > first);
    if (!priv) return touching.length === 0;
    const [only] = touching;
    return touching.length === 1 && only !== undefined && only.first <= first && only.last >= last;
  }

  /** Marks frames [first, last) private or shared. */
  set(priv: boolean, first: Gfn, last: Gfn): void {
    const kept = this.ranges.flatMap((range) => [
      { first: range.first, last: Math.min(range.last, first) },
      { first: Math.max(range.first, last), last: range.last },
    ]);
    const next = [...kept, ...(priv ? [{ first, last }] : [])].filter((range) => range.first < range.last);
    next.sort((a, b) => a.first - b.first);
    const merged: Range[] = [];
    for (const range of next) {
      const previous = merged.at(-1);
      if (previous?.last === range.first) merged[merged.length - 1] = { first: previous.first, last: range.last };
      else merged.push(range);
    }
    this.ranges = merged;
    const bytes = this.nodes * KMEM_SIZE.xa_node;
    if (this.charge !== null) this.charge.resize(bytes);
    else if (bytes > 0) this.charge = this.kmem.charge('xa_node', bytes);
  }

  /** `xa_destroy`. */
  free(): void {
    this.charge?.release();
    this.charge = null;
    this.ranges = [];
  }

  /** Nodes of an xarray that has an entry for each private frame: on each level those with anything below them. */
  private get nodes(): number {
    let nodes = 0;
    let level: readonly Range[] = this.ranges;
    const highest = level.at(-1);
    if (highest === undefined) return 0;
    for (let reach = 1; reach < highest.last; reach *= XA_SLOTS) {
      const above: Range[] = [];
      for (const { first, last } of level) {
        const from = Math.max(Math.floor(first / XA_SLOTS), above.at(-1)?.last ?? 0);
        const to = Math.ceil(last / XA_SLOTS);
        if (from < to) above.push({ first: from, last: to });
      }
      nodes += above.reduce((sum, { first, last }) => sum + last - first, 0);
      level = above;
    }
    return nodes;
  }
}

/** `kvm_supported_mem_attributes`: also KVM_CAP_MEMORY_ATTRIBUTES. */
export const supportedMemoryAttributes = (vm: Vm): number =>
  vm.kernel.ops.hasPrivateMemory(vm) ? KVM_MEMORY_ATTRIBUTE.PRIVATE : 0;

/** KVM_SET_MEMORY_ATTRIBUTES (`kvm_vm_ioctl_set_mem_attributes`). No memslot need exist in the range. */
export function* setMemoryAttributes(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const request = copyStruct(arg, kvm_memory_attributes);
  if (failed(request)) return request;
  const { address, size, attributes, flags } = request;
  const refuse = (reason: string, field: string, given: bigint, allowed: string): Failure =>
    new Failure('EINVAL', reason, 'kvm_vm_ioctl_set_mem_attributes', { field, given: `0x${given.toString(16)}`, allowed });
  if (flags !== 0n) return refuse('MEMORY_ATTRIBUTES_FLAGS', 'flags', flags, '0');
  const supported = BigInt(supportedMemoryAttributes(vm));
  if ((attributes & ~supported) !== 0n)
    return refuse('MEMORY_ATTRIBUTES_UNSUPPORTED', 'attributes', attributes, `0x${supported.toString(16)}`);
  const end = address + size;
  if (size === 0n || end >= 2n ** 64n) return refuse('MEMORY_ATTRIBUTES_RANGE', 'size', size, 'non-zero, without wrap');
  if (address % BigInt(PAGE_SIZE) !== 0n || size % BigInt(PAGE_SIZE) !== 0n)
    return refuse('MEMORY_ATTRIBUTES_UNALIGNED', 'address, size', address, 'multiples of 4096');

  const first = gfn(Number(address / BigInt(PAGE_SIZE)));
  const last = gfn(Number(end / BigInt(PAGE_SIZE)));
  const priv = attributes !== 0n;
  yield* vm.slotsLock.lock(current);
  if (!vm.memoryAttributes.allAre(priv, first, last)) {
    // Zap before the change: until both are done no fault can be resolved by the old attribute.
    for (const slot of vm.memslots) {
      const from = Math.max(first, slot.baseGfn);
      const to = Math.min(last, slot.endGfn);
      if (from < to) kvmMmuUnmapGfnRange(vm, slot, gfn(from), gfn(to));
    }
    vm.memoryAttributes.set(priv, first, last);
  }
  vm.slotsLock.unlock(current);
  return 0;
}
