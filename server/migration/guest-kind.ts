import type { Failure, Result } from '../kernel/failure.js';
import type { Kernel } from '../kernel/kernel.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { Process } from '../kernel/process/process.js';
import type { Task } from '../kernel/sched/task.js';
import type { MightSleep } from '../kernel/sched/wait.js';
import type { BatchRoom } from './batch-room.js';
import type { GuestDescription, GuestKindName, PageBatch } from './guest.js';
import type { OwedPages } from './owed-pages.js';
import type { StatePart } from './state-parts.js';

/** What a source does its own way for a kind of guest. */
export interface SourceKind {
  /** Opens the session with the target's platform. */
  begin(target: Uint8Array): Result<Uint8Array>;
  /** The next pages, all of one form; null: none is owed. */
  seal(owed: OwedPages, count: number, room: BatchRoom): Result<PageBatch | null>;
  state(): Result<StatePart[]>;
  /** Makes an entry fail in the machinery. */
  fence(): Failure | null;
  unfence(): void;
  /** Takes `begin` back. */
  cancel(): void;
  finish(): void;
}

/** What a destination does its own way. */
export interface DestinationKind {
  begin(opening: Uint8Array): Failure | null;
  receive(batch: PageBatch): Failure | null;
  restore(part: StatePart): Failure | null;
  /** The guest is whole. */
  prepare(): Failure | null;
}

/** A kind of guest: one file. */
export interface GuestKind {
  readonly name: GuestKindName;
  /** Whether vCPUs that a post-move policy lets through would find the guest on a host that has sent it. */
  readonly runsWithoutKey: boolean;
  /** Why such a guest cannot run before all of it has arrived; null: it can. */
  readonly whyNoPostCopy: string | null;
  source(vm: Vm): SourceKind;
  /** What the source's platform needs to know of this one. */
  target(kernel: Kernel): Result<Uint8Array>;
  /** Descriptors beside those of the VM and its vCPUs. */
  readonly otherFds: number;
  /** What `initialise` would be refused with now; null: nothing, as far as can be said without trying. */
  whyNotInitialised(kernel: Kernel, process: Process, description: GuestDescription): Failure | null;
  /** Makes a new VM, without vCPUs, a guest of this kind. The descriptors are those that it has opened and keeps. */
  initialise(current: Task, vm: Vm, description: GuestDescription): MightSleep<Result<readonly number[]>>;
  destination(vm: Vm): DestinationKind;
}
