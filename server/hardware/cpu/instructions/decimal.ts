import type { Core } from '../core.js';
import { type Compiled, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { Vector } from '../registers.js';
import { GuestFault } from '../traps.js';

/** DAA and DAS: AL after an addition or subtraction of packed digits. OF is undefined and cleared. */
const adjustPacked =
  (sign: 1 | -1) =>
  (core: Core): Compiled => {
    const { flags } = core;
    const { gpr8 } = core.state;
    return next(() => {
      const before = gpr8[0];
      const { cf, af } = flags;
      const lowDigit = (before & 15) > 9 || af === 1;
      const highDigit = before > 0x99 || cf === 1;
      let al = before;
      if (lowDigit) al += 6 * sign;
      const borrowed = sign < 0 && lowDigit && before < 6;
      if (highDigit) al += 0x60 * sign;
      al &= 0xff;
      gpr8[0] = al;
      flags.setResult(al << 24, al);
      flags.setCarryAndOverflow(highDigit || borrowed ? 1 : 0, 0);
      flags.adjust = lowDigit ? 8 : 0;
    });
  };

/** AAA and AAS: one unpacked digit, with AX as on current processors. ZF, SF, PF and OF are undefined. */
const adjustUnpacked =
  (sign: 1 | -1) =>
  (core: Core): Compiled => {
    const { flags } = core;
    const { gpr8, gpr16 } = core.state;
    return next(() => {
      const adjust = (gpr8[0] & 15) > 9 || flags.af === 1;
      if (adjust) gpr16[0] += 0x106 * sign;
      gpr8[0] &= 15;
      flags.setResult(gpr8[0] << 24, gpr8[0]);
      flags.setCarryAndOverflow(adjust ? 1 : 0, 0);
      flags.adjust = adjust ? 8 : 0;
    });
  };

const base = (instruction: Instruction): number => {
  const operand = instruction.operands[0];
  return operand?.kind === 'immediate' ? operand.lo & 0xff : 10;
};

const setResult = (core: Core): void => {
  const al = core.state.gpr8[0];
  core.flags.setResult(al << 24, al);
  core.flags.setCarryAndOverflow(0, 0);
  core.flags.adjust = 0;
};

/** AAM: AL into two digits. CF, OF and AF are undefined and cleared. */
function multiplyAdjust(core: Core, instruction: Instruction): Compiled {
  const by = base(instruction);
  const { gpr8 } = core.state;
  return next(() => {
    if (by === 0) throw new GuestFault(Vector.DE, null);
    const value = gpr8[0];
    gpr8[1] = Math.trunc(value / by);
    gpr8[0] = value % by;
    setResult(core);
  });
}

/** AAD: two digits into AL, with the flags of the addition. */
function divideAdjust(core: Core, instruction: Instruction): Compiled {
  const by = base(instruction);
  const { gpr8 } = core.state;
  const { Add } = core.alu[1].binary;
  return next(() => {
    gpr8[0] = Add(gpr8[0], gpr8[1] * by);
    gpr8[1] = 0;
  });
}

/** SALC: AL from CF. */
function setAlFromCarry(core: Core): Compiled {
  return next(() => {
    core.state.gpr8[0] = core.flags.cf === 1 ? 0xff : 0;
  });
}

/** Decimal adjustment, which 64-bit code does not have. */
export const decimal: InstructionGroup = {
  Daa: adjustPacked(1),
  Das: adjustPacked(-1),
  Aaa: adjustUnpacked(1),
  Aas: adjustUnpacked(-1),
  Aam: multiplyAdjust,
  Aad: divideAdjust,
  Salc: setAlFromCarry,
};
