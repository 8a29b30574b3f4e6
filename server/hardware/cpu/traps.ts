import type { CpuExit, EventInfo } from './types.js';

/*
 * How an instruction is given up half way. These are thrown, and caught in one place (`Cpu.run`, `Cpu.emulate`): the
 * access that faults lies several calls below the instruction, and the path without a fault must not pay for it.
 */

/** The guest gets an exception. */
export class GuestFault {
  constructor(
    readonly vector: number,
    readonly errorCode: number | null,
    /** The address was not canonical: #GP, but #SS when the instruction's access was to the stack. */
    readonly nonCanonical = false,
  ) {}
}

/** The instruction ends `Cpu.run`. */
export class ExitTrap {
  constructor(readonly exit: CpuExit) {}
}

/** The emulation bus has no data yet. */
export class DataPending {}

/** INT n and its kin: an event whose handler returns behind the instruction. */
export class SoftwareInterrupt {
  constructor(readonly event: EventInfo) {}
}

/** The instruction is outside the subset. */
export class UnsupportedInstruction {}
