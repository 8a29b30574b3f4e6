import { type Gpa, gpa, gpaToGfn, PAGE_SIZE } from '../../../hardware/units.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import { type MightSleep, RESCHED } from '../../sched/wait.js';
import { kvm_pre_fault_memory } from '../../uapi/kvm-structs.js';
import type { StructValue } from '../../uapi/struct.js';
import { copyStruct } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';

const PAGES_PER_TURN = 256;
const PAGE = BigInt(PAGE_SIZE);
/** Guest-physical addresses end here; beyond it there is no memory, and numbers stop being exact. */
const GPA_END = 2n ** 52n;

const refuse = (reason: string, field: string, given: bigint): Failure =>
  new Failure('EINVAL', reason, 'kvm_vcpu_pre_fault_memory', { field, given: `0x${given.toString(16)}` });

/** `kvm_arch_vcpu_pre_fault_memory` for one page. ENOENT: no slot; else what the fault itself gives. */
const preFault = (vcpu: Vcpu, address: Gpa): Failure | null => {
  const { vm } = vcpu;
  const isPrivate = vm.memoryAttributes.isPrivate(gpaToGfn(address));
  const page = vm.arch.mmu.map(vcpu, address, 'read', isPrivate);
  if (page.kind === 'mapped') return null;
  if (page.outcome.kind === 'failed') return page.outcome.failure;
  if (page.outcome.kind === 'missing') return page.outcome.page;
  return new Failure('ENOENT', 'NO_MEMSLOT', 'kvm_arch_vcpu_pre_fault_memory', { gpa: `0x${address.toString(16)}` });
};

/** Maps the pages of a range, whose beginning moves on with each. Null: all of them. */
function* preFaultPages(current: Task, vcpu: Vcpu, range: StructValue<typeof kvm_pre_fault_memory>): MightSleep<Failure | null> {
  for (let done = 1; range.size > 0n; done++) {
    if (current.thread.signalPending) return new Failure('EINTR', 'SIGNAL_PENDING', 'kvm_vcpu_pre_fault_memory');
    if (range.gpa >= GPA_END) return new Failure('ENOENT', 'NO_MEMSLOT', 'kvm_arch_vcpu_pre_fault_memory');
    const stopped = preFault(vcpu, gpa(Number(range.gpa)));
    if (stopped !== null) return stopped;
    range.gpa += PAGE;
    range.size -= PAGE;
    if (done % PAGES_PER_TURN === 0) yield RESCHED;
  }
  return null;
}

/**
 * KVM_PRE_FAULT_MEMORY: maps pages before the guest touches them. What is left to do is written back; 0 if there was
 * some progress, whatever stopped it.
 */
export function* preFaultMemory(current: Task, vcpu: Vcpu, arg: IoctlArg): MightSleep<Result<number>> {
  const range = copyStruct(arg, kvm_pre_fault_memory);
  if (failed(range)) return range;
  if (range.flags !== 0n) return refuse('PRE_FAULT_FLAGS', 'flags', range.flags);
  if (range.gpa % PAGE !== 0n) return refuse('PRE_FAULT_UNALIGNED', 'gpa', range.gpa);
  if (range.size % PAGE !== 0n || range.size === 0n || range.gpa + range.size >= 2n ** 64n)
    return refuse('PRE_FAULT_RANGE', 'size', range.size);
  if (!vcpu.vm.arch.preFaultAllowed)
    return new Failure('EOPNOTSUPP', 'PRE_FAULT_NOT_ALLOWED_YET', 'kvm_arch_vcpu_pre_fault_memory', {
      object: `vm ${vcpu.vm.id}`,
    });
  vcpu.vm.arch.mmu.load();
  const first = range.gpa;
  const stopped = yield* preFaultPages(current, vcpu, range);
  const written = arg.user.copyOut(arg.value, kvm_pre_fault_memory.encode(range));
  if (written !== null) return written;
  return range.gpa === first && stopped !== null ? stopped : 0;
}
