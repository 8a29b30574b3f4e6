import type { Core } from './core.js';
import { DR6 } from './debug-registers.js';
import { combineFaults, deliverEvent } from './events.js';
import { Vector } from './registers.js';
import { ExitTrap, GuestFault, UnsupportedInstruction } from './traps.js';
import type { CpuExit, EventInfo } from './types.js';

const SHUTDOWN: CpuExit = { kind: 'shutdown' };

/**
 * Gives the guest its events: each is intercepted or delivered, and what its delivery raises is an event again, up to a double
 * fault and shutdown. An exit that is returned ends the run.
 */
export class EventDelivery {
  /** @param unsupported the exit for what the CPU cannot do, such as a task switch */
  constructor(
    private readonly core: Core,
    private readonly unsupported: () => CpuExit,
  ) {}

  /** @param injected the event comes from the host, which does not intercept what it injects (APM vol. 2, 15.20) */
  raise(event: EventInfo, injected = false): CpuExit | null {
    let current = event;
    for (;;) {
      if (!(injected && current === event) && this.isIntercepted(current)) return this.exceptionExit(current);
      try {
        this.deliver(current);
        return null;
      } catch (trap) {
        if (!(trap instanceof GuestFault)) return this.exitOf(trap);
        const following = combineFaults(current, trap);
        if (following === 'shutdown') return SHUTDOWN;
        current = following;
      }
    }
  }

  /** INT n returns behind itself, to (`nextLo`, `nextHi`), unless its delivery faults: then the fault is the instruction's. */
  raiseSoftware(event: EventInfo, nextLo: number, nextHi: number): CpuExit | null {
    const { state } = this.core;
    if (this.isIntercepted(event)) return this.exceptionExit(event);
    const { ripLo, ripHi } = state;
    state.ripLo = nextLo;
    state.ripHi = nextHi;
    try {
      this.deliver(event);
      return null;
    } catch (trap) {
      state.ripLo = ripLo;
      state.ripHi = ripHi;
      this.core.attention = true;
      if (!(trap instanceof GuestFault)) return this.exitOf(trap);
      return this.raise({ type: 'exception', vector: trap.vector, errorCode: trap.errorCode });
    }
  }

  private exitOf(trap: unknown): CpuExit {
    if (trap instanceof ExitTrap) return trap.exit;
    if (trap instanceof UnsupportedInstruction) return this.unsupported();
    throw trap;
  }

  private isIntercepted(event: EventInfo): boolean {
    const byVector = event.type === 'exception' || (event.type === 'software' && event.vector === Vector.BP);
    return byVector && (this.core.intercepts.exceptions & (1 << event.vector)) !== 0;
  }

  private exceptionExit({ vector, errorCode }: EventInfo): CpuExit {
    return vector === Vector.DB ? { kind: 'debug', dr6: this.core.state.dr[DR6] } : { kind: 'exception', vector, errorCode };
  }

  private deliver(event: EventInfo): void {
    const { core } = this;
    const { state, memory } = core;
    memory.physical.delivering = event;
    try {
      deliverEvent(core, event);
    } finally {
      memory.physical.delivering = null;
    }
    state.interruptShadow = 'none';
    if (event.type === 'nmi') state.nmiBlocked = true;
    core.attention = true;
  }
}
