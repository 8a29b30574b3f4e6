import type { AmdPlatform } from '../../hardware/amd/platform.js';
import type { Vm } from '../kvm/vm.js';
import type { PageAllocator } from '../mm/page.js';
import type { Scheduler } from '../sched/scheduler.js';
import type { Task } from '../sched/task.js';
import { CarriedState } from './carried-state.js';
import { EncryptionContexts } from './encryption-contexts.js';
import type { Findings, JournalEntry } from './findings.js';
import { GuestFrames } from './guest-frames.js';
import { InterruptLedger } from './interrupt-ledger.js';
import { Leaks } from './leaks.js';
import { TransportPackets } from './transport-packets.js';

/** A kernel worker is no call; what it does is put down to it all the same. */
const worker = ({ label }: Task): JournalEntry => ({ vm: null, describe: () => label });

/**
 * The ledgers that the kernel's objects keep, and the checks that run after every call. None of them knows which
 * post-move policy is in force: they see what happens to contexts, frames, registers and memory.
 */
export class Sanitizer {
  readonly contexts: EncryptionContexts;
  readonly frames: GuestFrames;
  readonly carried: CarriedState;
  readonly interrupts: InterruptLedger;
  readonly leaks: Leaks;
  readonly packets: TransportPackets;

  constructor(
    readonly findings: Findings,
    pages: PageAllocator,
    amd: AmdPlatform | null,
    private readonly vms: ReadonlyMap<number, Vm>,
    scheduler: Scheduler,
  ) {
    this.contexts = new EncryptionContexts(findings, amd?.asidKeys ?? null);
    this.frames = new GuestFrames(findings, this.contexts, amd?.rmp ?? null);
    this.carried = new CarriedState(findings);
    this.interrupts = new InterruptLedger(findings);
    this.leaks = new Leaks(findings, amd?.processor ?? null);
    this.packets = new TransportPackets(findings);
    findings.currentCall = () => scheduler.current && (scheduler.current.call ?? worker(scheduler.current));
    pages.onFree = (frame) => this.frames.freed(frame);
    pages.onCopy = (from, mm) => this.frames.copied(from, mm);
  }

  /** A call begins, or is found to be about a VM: findings that its task causes name it, and the calls before it. */
  callBegins(current: Task, entry: JournalEntry): void {
    current.call = entry;
    this.findings.note(entry);
    this.frames.callBegins();
  }

  /** A call is over, and whatever it has set free has been set free. */
  callEnded(): void {
    this.leaks.callEnded(this.vms.size);
  }
}
