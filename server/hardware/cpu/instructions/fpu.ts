import type { Core } from '../core.js';
import { type Compiled, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { linearAddress, memoryAt, reader, writer } from '../operands.js';
import { Cr0, Vector } from '../registers.js';
import type { CpuState } from '../state.js';
import { GuestFault } from '../traps.js';
import { requireSse } from './sse.js';

const FXSAVE_BYTES = 512;
/** Bits of MXCSR that exist. */
const MXCSR_MASK = 0xffff;

/** #NM unless x87 instructions may run. */
function requireX87(core: Core): void {
  if ((core.state.cr0Lo & (Cr0.EM | Cr0.TS)) !== 0) throw new GuestFault(Vector.NM, null);
}

const x87 =
  (operation: (state: CpuState) => void) =>
  (core: Core): Compiled =>
    next(() => {
      requireX87(core);
      operation(core.state);
    });

function initialize(state: CpuState): void {
  state.fcw = 0x37f;
  state.fsw = 0;
  state.ftw = 0;
  state.fop = 0;
  state.fip = 0n;
  state.fdp = 0n;
}

const storeWord =
  (read: (state: CpuState) => number) =>
  (core: Core, instruction: Instruction): Compiled => {
    const write = writer(core, instruction, 0);
    return next(() => {
      requireX87(core);
      write(read(core.state), 0);
    });
  };

function loadControl(core: Core, instruction: Instruction): Compiled {
  const read = reader(core, instruction, 0, 2);
  return next(() => {
    requireX87(core);
    core.state.fcw = (read() & 0x1f3f) | 0x40;
  });
}

/** The 512-byte image of FXSAVE, as kvm_fpu and the state-save areas also have it (APM volume 2, 11.4.4). */
function writeImage(state: CpuState, view: DataView, registers: number): void {
  view.setUint16(0, state.fcw, true);
  view.setUint16(2, state.fsw, true);
  view.setUint8(4, state.ftw);
  view.setUint16(6, state.fop, true);
  view.setBigUint64(8, state.fip, true);
  view.setBigUint64(16, state.fdp, true);
  view.setUint32(24, state.mxcsr, true);
  view.setUint32(28, MXCSR_MASK, true);
  const bytes = new Uint8Array(view.buffer);
  bytes.set(state.st, 32);
  bytes.set(state.xmmBytes.subarray(0, 16 * registers), 160);
}

function readImage(state: CpuState, view: DataView, registers: number): void {
  state.fcw = view.getUint16(0, true);
  state.fsw = view.getUint16(2, true);
  state.ftw = view.getUint8(4);
  state.fop = view.getUint16(6, true);
  state.fip = view.getBigUint64(8, true);
  state.fdp = view.getBigUint64(16, true);
  state.mxcsr = view.getUint32(24, true);
  const bytes = new Uint8Array(view.buffer);
  state.st.set(bytes.subarray(32, 160));
  state.xmmBytes.set(bytes.subarray(160, 160 + 16 * registers));
}

const imageTransfer =
  (save: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const address = linearAddress(core, memoryAt(instruction, 0), FXSAVE_BYTES, save, instruction.bits);
    const bytes = new Uint8Array(FXSAVE_BYTES);
    const view = new DataView(bytes.buffer);
    const registers = instruction.bits === 64 ? 16 : 8;
    const { memory, state } = core;
    return next(() => {
      requireX87(core);
      const lo = address();
      const { hi } = memory;
      if ((lo & 15) !== 0) throw new GuestFault(Vector.GP, 0);
      memory.copyIn(lo, hi, FXSAVE_BYTES, bytes, 0, save);
      if (save) {
        writeImage(state, view, registers);
        memory.copyOut(lo, hi, FXSAVE_BYTES, bytes, 0);
      } else {
        if ((view.getUint32(24, true) & ~MXCSR_MASK) !== 0) throw new GuestFault(Vector.GP, 0);
        readImage(state, view, registers);
      }
    });
  };

function loadMxcsr(core: Core, instruction: Instruction): Compiled {
  const read = reader(core, instruction, 0, 4);
  return next(() => {
    requireSse(core);
    const value = read();
    if ((value & ~MXCSR_MASK) !== 0) throw new GuestFault(Vector.GP, 0);
    core.state.mxcsr = value;
  });
}

function storeMxcsr(core: Core, instruction: Instruction): Compiled {
  const write = writer(core, instruction, 0);
  return next(() => {
    requireSse(core);
    write(core.state.mxcsr, 0);
  });
}

/** What an operating system does to the x87 and SSE state without computing: initialise, save, restore. */
export const fpu: InstructionGroup = {
  Fninit: x87(initialize),
  Fnclex: x87((state) => {
    state.fsw &= 0x7f00;
  }),
  Emms: x87((state) => {
    state.ftw = 0;
  }),
  Wait: x87(() => {}),
  Fnstcw: storeWord((state) => state.fcw),
  Fnstsw: storeWord((state) => state.fsw),
  Fldcw: loadControl,
  Fxsave: imageTransfer(true),
  Fxsave64: imageTransfer(true),
  Fxrstor: imageTransfer(false),
  Fxrstor64: imageTransfer(false),
  Ldmxcsr: loadMxcsr,
  Stmxcsr: storeMxcsr,
};
