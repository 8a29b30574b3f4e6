import type { Core } from './core.js';
import { RFLAGS_WRITABLE, Rflags } from './flags.js';

/** IOPL. */
export const ioPrivilege = (core: Core): number => (core.flags.control >> 12) & 3;

/** What POPF and IRET may change at the current privilege; `size` of the image in bytes. */
export function writableFlags(core: Core, size: number): number {
  let mask = RFLAGS_WRITABLE & ~(Rflags.VM | Rflags.VIF | Rflags.VIP | Rflags.IOPL | Rflags.IF | Rflags.RF);
  if (size === 2) mask &= 0xffff;
  if (core.cpl === 0) mask |= Rflags.IOPL;
  if (core.cpl <= ioPrivilege(core)) mask |= Rflags.IF;
  return mask;
}

/** Runs a transfer that changes several registers; if it is given up, they are as before. */
export function atomically(core: Core, transfer: () => void): void {
  const snapshot = core.state.snapshot();
  try {
    transfer();
  } catch (trap) {
    core.state.restore(snapshot);
    core.deriveMode();
    throw trap;
  }
}
