import { type Block, CodeCache } from './code-cache.js';
import { Core, type CpuOptions } from './core.js';
import { breakpointsEnabled, DR6, Dr6, instructionBreakpoints } from './debug-registers.js';
import { EventDelivery } from './event-delivery.js';
import { faultVector } from './events.js';
import { Rflags } from './flags.js';
import { Gpr, Seg, Vector } from './registers.js';
import type { CpuState } from './state.js';
import { DataPending, ExitTrap, GuestFault, SoftwareInterrupt, UnsupportedInstruction } from './traps.js';
import type {
  CpuExit,
  CpuFeatures,
  EmulationBus,
  EmulationResult,
  EventInfo,
  Intercepts,
  MemoryEncryption,
  ReverseMap,
  Translation,
} from './types.js';

const BUDGET: CpuExit = { kind: 'budget' };
/** Elements of a repeated string instruction that count as one instruction of the budget. */
const REPEAT_LIMIT = 1024;

/**
 * One guest CPU. `run` executes guest code until something happens that SVM would end VMRUN for; what the exit asks for
 * is done by whoever called, who then runs it again.
 */
export class Cpu {
  private readonly core: Core;
  private readonly events: EventDelivery;
  /** Made at the first run, as a CPU that never runs needs none. */
  private codeCache: CodeCache | null = null;
  /** Architectural state. Changes are seen at the next `run`. */
  readonly state: CpuState;
  /** Instructions begun so far, those that faulted included. */
  executed = 0;

  private injected: EventInfo | null = null;
  private interruptWindow = false;
  private nmiWindow = false;
  /** One instruction at a time: interrupt shadow, TF, RF, breakpoints, single step. */
  private stepping = false;
  /** Shadow and RFLAGS before the instruction that is stepped over. */
  private shadowBefore = false;
  private controlBefore = 0;
  private seenRevision = -1;
  private seenPaging = '';
  private nextRipLo = 0;
  private nextRipHi = 0;

  constructor(options: CpuOptions) {
    this.core = new Core(options);
    this.events = new EventDelivery(this.core, () => this.unsupported());
    this.state = this.core.state;
  }

  private get code(): CodeCache {
    this.codeCache ??= new CodeCache(this.core);
    return this.codeCache;
  }

  // ---- configuration -------------------------------------------------------------------------------------------

  setIntercepts(intercepts: Intercepts): void {
    this.core.setIntercepts(intercepts);
  }

  setEncryption(encryption: MemoryEncryption): void {
    this.core.setEncryption(encryption);
  }

  /** SEV-SNP is enabled on this host: from now on every translation is checked against the reverse map. */
  setReverseMap(reverseMap: ReverseMap): void {
    this.core.setReverseMap(reverseMap);
  }

  setFeatures(features: CpuFeatures): void {
    this.core.features = features;
    this.flushTlb();
  }

  /** Every translation is looked up again: memslots or nested entries have changed, or VMRUN asks for it. */
  flushTlb(): void {
    this.core.flushNested();
  }

  // ---- events --------------------------------------------------------------------------------------------------

  /** The event that the next `run` delivers first (EVENTINJ), or null. */
  get pendingEvent(): EventInfo | null {
    return this.injected;
  }
  set pendingEvent(event: EventInfo | null) {
    this.injected = event;
    this.core.attention = true;
  }

  injectInterrupt(vector: number): void {
    this.pendingEvent = { type: 'interrupt', vector, errorCode: null };
  }

  injectNmi(): void {
    this.pendingEvent = { type: 'nmi', vector: Vector.NMI, errorCode: null };
  }

  injectException(vector: number, errorCode: number | null): void {
    this.pendingEvent = { type: 'exception', vector, errorCode };
  }

  /** RFLAGS.IF is set, no shadow, and no event is waiting to be delivered. */
  get canTakeInterrupt(): boolean {
    return this.injected === null && (this.core.flags.control & Rflags.IF) !== 0 && this.state.interruptShadow === 'none';
  }

  get canTakeNmi(): boolean {
    return this.injected === null && !this.state.nmiBlocked && this.state.interruptShadow === 'none';
  }

  /** Asks for an exit as soon as an interrupt (an NMI) can be taken. Stays until it is withdrawn. */
  requestWindow(window: { readonly interrupt?: boolean; readonly nmi?: boolean }): void {
    this.interruptWindow = window.interrupt ?? this.interruptWindow;
    this.nmiWindow = window.nmi ?? this.nmiWindow;
    this.core.attention = true;
  }

  // ---- after an exit -------------------------------------------------------------------------------------------

  /** Steps over the instruction of the last exit; it counts as executed. */
  skipInstruction(): void {
    this.state.ripLo = this.nextRipLo;
    this.state.ripHi = this.nextRipHi;
    this.state.interruptShadow = 'none';
  }

  /** Completes an IN (not a string one): the value goes to AL, AX or EAX, and RIP moves on. */
  completeIn(size: 1 | 2 | 4, value: number): void {
    const { gpr, gpr8, gpr16 } = this.state;
    if (size === 1) gpr8[0] = value;
    else if (size === 2) gpr16[0] = value;
    else {
      gpr[0] = value;
      gpr[1] = 0;
    }
    this.skipInstruction();
  }

  /** Sets EAX, EBX, ECX and EDX as CPUID does, and moves on. */
  completeCpuid(eax: number, ebx: number, ecx: number, edx: number): void {
    const { gpr } = this.state;
    const results: readonly (readonly [number, number])[] = [
      [Gpr.RAX, eax],
      [Gpr.RBX, ebx],
      [Gpr.RCX, ecx],
      [Gpr.RDX, edx],
    ];
    for (const [register, value] of results) {
      gpr[2 * register] = value;
      gpr[2 * register + 1] = 0;
    }
    this.skipInstruction();
  }

  /** Completes RDMSR, RDTSC or RDPMC: the value goes to EDX:EAX, and RIP moves on. */
  completeRead(value: bigint): void {
    this.state.setRegister(Gpr.RAX, value & 0xffffffffn);
    this.state.setRegister(Gpr.RDX, (value >> 32n) & 0xffffffffn);
    this.skipInstruction();
  }

  /** CS.base + RIP, as KVM compares it. */
  get linearRip(): bigint {
    if (this.state.code64) return this.state.rip;
    return BigInt(((this.state.baseLo[Seg.CS] + this.state.ripLo) | 0) >>> 0);
  }

  /** The bytes at RIP, at most 15, as far as they can be fetched. */
  instructionBytes(): Uint8Array {
    this.noticeChanges();
    return this.code.bytesAtRip();
  }

  /** A walk of the guest's page tables without side effects. Null: no translation. */
  translate(linear: bigint): Translation | null {
    this.noticeChanges();
    const lo = Number(BigInt.asIntN(32, linear));
    return this.core.memory.translate(lo, Number(BigInt.asIntN(32, linear >> 32n)));
  }

  reset(): void {
    this.state.reset();
    this.forgetEvents();
  }

  /** INIT. The vCPU then waits for `state.startup`. */
  init(): void {
    this.state.init();
    this.forgetEvents();
  }

  private forgetEvents(): void {
    this.injected = null;
    this.core.exitAfter = null;
  }

  // ---- execution -----------------------------------------------------------------------------------------------

  /** Executes at most `budget` instructions. */
  run(budget: number): CpuExit {
    const { core, code } = this;
    this.noticeChanges();
    core.attention = true;
    let remaining = budget;
    let block: Block | null = null;
    let index = 0;
    for (;;) {
      try {
        for (;;) {
          block = null;
          index = 0;
          if (core.attention) {
            const exit = this.attend();
            if (exit !== null) return exit;
          }
          if (remaining <= 0) return BUDGET;
          block = code.find();
          const { operations } = block;
          const { length } = operations;
          core.end = this.stepping ? 1 : Math.min(remaining, length);
          do {
            operations[index]();
            index++;
          } while (index < core.end);
          remaining -= index;
          this.executed += index;
          if (index < length || block.fallsThrough) this.setRip(block, index);
          if (this.stepping) {
            const exit = this.finishStep();
            if (exit !== null) return exit;
          }
        }
      } catch (trap) {
        remaining -= index + 1;
        this.executed += index + 1;
        const exit = this.handle(trap, block, index);
        if (exit !== null) return exit;
      }
    }
  }

  /**
   * Executes the instruction at RIP, or one iteration of a repeated one, with accesses that are not RAM going to the
   * bus. An exception is not delivered here but pending, and a single step is left to whoever has it emulated.
   */
  emulate(bus: EmulationBus): EmulationResult {
    const { core, state } = this;
    this.noticeChanges();
    const snapshot = state.snapshot();
    const shadowed = state.interruptShadow !== 'none';
    const traced = (core.flags.control & Rflags.TF) !== 0;
    let block: Block | null = null;
    let repeats = false;
    core.repeatLimit = 1;
    core.memory.bus = bus;
    try {
      block = this.code.find();
      const { ripLo, ripHi } = block;
      core.end = 1;
      block.operations[0]();
      repeats = block.instructions[0].repeat !== 'none' && state.ripLo === ripLo && state.ripHi === ripHi;
      if (block.operations.length > 1 || block.fallsThrough) this.setRip(block, 1);
    } catch (trap) {
      this.setNextRip(block, 0);
      state.restore(snapshot);
      this.derive();
      return this.giveUpEmulation(trap, block);
    } finally {
      core.memory.bus = null;
    }
    if (shadowed) state.interruptShadow = 'none';
    if (repeats) core.flags.control |= Rflags.RF;
    else core.flags.control &= ~Rflags.RF;
    return { kind: 'retired', repeats, traced };
  }

  private giveUpEmulation(trap: unknown, block: Block | null): EmulationResult {
    if (trap instanceof DataPending) return { kind: 'pending' };
    if (trap instanceof ExitTrap) return { kind: 'exit', exit: trap.exit };
    if (trap instanceof UnsupportedInstruction) return { kind: 'exit', exit: this.unsupported() };
    if (trap instanceof SoftwareInterrupt) {
      this.skipInstruction();
      this.pendingEvent = trap.event;
      return { kind: 'retired', repeats: false, traced: false };
    }
    if (!(trap instanceof GuestFault)) throw trap;
    const vector = faultVector(trap, block?.instructions[0]);
    this.injectException(vector, trap.errorCode);
    return { kind: 'exception', vector };
  }

  /** Notices what has been changed from outside since the last run. */
  private noticeChanges(): void {
    const { state } = this;
    if (state.revision === this.seenRevision) return;
    this.derive();
    const paging = `${state.cr0Lo},${state.cr3Lo},${state.cr3Hi},${state.cr4Lo},${state.eferLo}`;
    if (paging !== this.seenPaging) this.core.flushTranslations();
    this.seenPaging = paging;
  }

  private derive(): void {
    this.seenRevision = this.state.revision;
    this.core.deriveMode();
  }

  private setRip(block: Block, index: number): void {
    const lo = (block.ripLo + block.offsets[index]) | 0;
    this.state.ripLo = lo;
    this.state.ripHi = lo >>> 0 < block.ripLo >>> 0 && this.core.codeSize === 64 ? (block.ripHi + 1) | 0 : block.ripHi;
  }

  private setNextRip(block: Block | null, index: number): void {
    const instruction = block?.instructions[index];
    if (instruction === undefined) return;
    this.nextRipLo = instruction.nextLo;
    this.nextRipHi = instruction.nextHi;
  }

  // ---- between instructions ------------------------------------------------------------------------------------

  /** What has to be looked at before the next block. */
  private attend(): CpuExit | null {
    const { core, state } = this;
    core.attention = false;
    const { exitAfter } = core;
    if (exitAfter !== null) {
      core.exitAfter = null;
      core.attention = true;
      return exitAfter;
    }
    if (this.injected !== null) {
      const event = this.injected;
      this.injected = null;
      core.attention = true;
      const exit = this.events.raise(event, true);
      if (exit !== null) return exit;
    }
    if (this.interruptWindow && this.canTakeInterrupt) return { kind: 'interrupt-window' };
    if (this.nmiWindow && this.canTakeNmi) return { kind: 'nmi-window' };
    const breakpoints = breakpointsEnabled(state);
    this.stepping =
      state.interruptShadow !== 'none' ||
      (core.flags.control & (Rflags.TF | Rflags.RF)) !== 0 ||
      core.intercepts.singleStep ||
      breakpoints;
    core.repeatLimit = this.stepping ? 1 : REPEAT_LIMIT;
    if (!this.stepping) return null;
    core.attention = true;
    this.shadowBefore = state.interruptShadow !== 'none';
    this.controlBefore = core.flags.control;
    return breakpoints ? this.checkBreakpoints() : null;
  }

  private checkBreakpoints(): CpuExit | null {
    const { state, core } = this;
    if ((core.flags.control & Rflags.RF) !== 0) return null;
    const hit = instructionBreakpoints(state, this.linearRip);
    if (hit === 0) return null;
    state.dr[DR6] = (state.dr[DR6] & ~0xf) | hit;
    const exit = this.events.raise({ type: 'exception', vector: Vector.DB, errorCode: null });
    if (exit === null) core.flags.control &= ~Rflags.RF;
    this.stepping = false;
    return exit;
  }

  /** After one instruction in steps: the end of a shadow, RF, and the traps. */
  private finishStep(): CpuExit | null {
    const { core, state } = this;
    this.stepping = false;
    if (this.shadowBefore) state.interruptShadow = 'none';
    if ((this.controlBefore & Rflags.RF) !== 0) core.flags.control &= ~Rflags.RF;
    if (core.intercepts.singleStep) {
      state.dr[DR6] |= Dr6.BS;
      return { kind: 'debug', dr6: state.dr[DR6] };
    }
    if ((this.controlBefore & Rflags.TF) === 0 || state.interruptShadow === 'mov-ss') return null;
    state.dr[DR6] |= Dr6.BS;
    return this.events.raise({ type: 'exception', vector: Vector.DB, errorCode: null });
  }

  // ---- traps ---------------------------------------------------------------------------------------------------

  /** An instruction was given up. `block` is null when it could not even be fetched. */
  private handle(trap: unknown, block: Block | null, index: number): CpuExit | null {
    if (block !== null) this.setRip(block, index);
    this.setNextRip(block, index);
    this.stepping = false;
    if (trap instanceof GuestFault) {
      const vector = faultVector(trap, block?.instructions[index]);
      return this.events.raise({ type: 'exception', vector, errorCode: trap.errorCode });
    }
    if (trap instanceof ExitTrap) return trap.exit;
    if (trap instanceof SoftwareInterrupt) return this.events.raiseSoftware(trap.event, this.nextRipLo, this.nextRipHi);
    if (trap instanceof UnsupportedInstruction) return this.unsupported();
    throw trap;
  }

  private unsupported(): CpuExit {
    return { kind: 'unsupported', bytes: this.code.bytesAtRip() };
  }
}
