import type { CpuState } from './state.js';

/** Low halves of DR6 and DR7 in `CpuState.dr`. */
export const DR6 = 12;
export const DR7 = 14;

/** Bits of DR6 above the four of the breakpoints (APM volume 2, 13.1.1.3). */
export const Dr6 = { BD: 1 << 13, BS: 1 << 14 } as const;

/** Bits of DR7: L0 to G3, and general detect (APM volume 2, 13.1.1.4). */
export const Dr7 = { ENABLED: 0xff, GD: 1 << 13 } as const;

const BREAKPOINTS = 4;

export const breakpointsEnabled = (state: CpuState): boolean => (state.dr[DR7] & Dr7.ENABLED) !== 0;

/** B0 to B3 of DR6: which instruction breakpoints an address has hit. Data breakpoints are not modelled. */
export function instructionBreakpoints(state: CpuState, linear: bigint): number {
  let hit = 0;
  for (let index = 0; index < BREAKPOINTS; index++) {
    const enabled = ((state.dr[DR7] >> (2 * index)) & 3) !== 0;
    const onExecution = ((state.dr[DR7] >> (16 + 4 * index)) & 3) === 0;
    if (enabled && onExecution && state.debugRegister(index) === linear) hit |= 1 << index;
  }
  return hit;
}
