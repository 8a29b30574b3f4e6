import type { Core } from '../core.js';
import { Rflags } from '../flags.js';
import { type Compiled, end, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { effectiveAddress, gprAt, gprWriter, linearAddress, memoryAt, reader } from '../operands.js';
import { ioPrivilege } from '../privilege.js';
import { Cr4, Gpr, Msr, Seg, Vector } from '../registers.js';
import { ExitTrap, GuestFault } from '../traps.js';
import { type CpuExit, type ReverseMap, SvmExitCode } from '../types.js';
import { requireNoUmip } from './segment-registers.js';

const RAX = 2 * Gpr.RAX;
const RCX = 2 * Gpr.RCX;
const RDX = 2 * Gpr.RDX;

const low = (value: bigint): number => Number(BigInt.asIntN(32, value));
const high = (value: bigint): number => Number(BigInt.asIntN(32, value >> 32n));
const join = (lo: number, hi: number): bigint => (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);

/** EDX:EAX. */
const pairValue = (core: Core): bigint => join(core.gpr[0], core.gpr[RDX]);

function setPair(core: Core, value: bigint): void {
  const { gpr } = core;
  gpr[0] = low(value);
  gpr[1] = 0;
  gpr[RDX] = high(value);
  gpr[RDX + 1] = 0;
}

const undefinedOpcode = (): GuestFault => new GuestFault(Vector.UD, null);
const generalProtection = (): GuestFault => new GuestFault(Vector.GP, 0);

// ---- model-specific registers ----------------------------------------------------------------------------------

const PASSED_THROUGH: readonly number[] = [
  Msr.SYSENTER_CS,
  Msr.SYSENTER_ESP,
  Msr.SYSENTER_EIP,
  Msr.STAR,
  Msr.LSTAR,
  Msr.CSTAR,
  Msr.SYSCALL_MASK,
  Msr.FS_BASE,
  Msr.GS_BASE,
  Msr.KERNEL_GS_BASE,
];

/** MSRs that hold an address: #GP unless canonical. */
const ADDRESSES: readonly number[] = [
  Msr.SYSENTER_ESP,
  Msr.SYSENTER_EIP,
  Msr.LSTAR,
  Msr.CSTAR,
  Msr.FS_BASE,
  Msr.GS_BASE,
  Msr.KERNEL_GS_BASE,
];

/**
 * Whether the CPU serves an access itself. With encrypted state the guest's GHCB MSR is no exit, and EFER is trapped
 * after the write. The permission map can take any of them away.
 */
function isOwn(core: Core, index: number, write: boolean): boolean {
  const { nonAutomatic, writeTraps, msr } = core.intercepts;
  const own =
    PASSED_THROUGH.includes(index) ||
    (nonAutomatic === 'vc' && (index === Msr.SEV_ES_GHCB || index === Msr.SEV_STATUS)) ||
    (index === Msr.EFER && (!write || writeTraps));
  return own && msr?.(index, write) !== true;
}

function readMsr(core: Core): Compiled {
  return next(() => {
    core.requirePrivilege();
    const index = core.gpr[RCX] >>> 0;
    const value = isOwn(core, index, false) ? core.state.readMsr(index) : null;
    if (value === null) core.intercept(SvmExitCode.MSR, { kind: 'rdmsr', index });
    setPair(core, value);
  });
}

function writeMsr(core: Core): Compiled {
  return end(() => {
    core.requirePrivilege();
    const index = core.gpr[RCX] >>> 0;
    const value = pairValue(core);
    if (!isOwn(core, index, true)) core.intercept(SvmExitCode.MSR, { kind: 'wrmsr', index, value });
    if (ADDRESSES.includes(index) && !core.memory.isCanonical(low(value), high(value))) throw generalProtection();
    core.state.writeMsr(index, value);
    core.attention = true;
    if (index === Msr.EFER) core.exitAfter = { kind: 'write-trap', register: 'efer' };
  });
}

// ---- exits -----------------------------------------------------------------------------------------------------

/** An instruction that is always intercepted and may exit non-automatically. */
const intercepted =
  (exitCode: number, exit: CpuExit, privileged: boolean) =>
  (core: Core): Compiled =>
    next(() => {
      if (privileged) core.requirePrivilege();
      core.intercept(exitCode, exit);
    });

/** An exit that never becomes #VC. */
const exits =
  (exit: CpuExit, privileged: boolean) =>
  (core: Core): Compiled =>
    next(() => {
      if (privileged) core.requirePrivilege();
      throw new ExitTrap(exit);
    });

/** VMGEXIT: without encrypted state it is VMMCALL. RIP is past it at the exit. */
function vmgexit(core: Core): Compiled {
  return end(() => {
    if (core.intercepts.nonAutomatic !== 'vc') throw new ExitTrap({ kind: 'vmmcall', instruction: 'vmmcall' });
    core.exitAfter = { kind: 'vmgexit' };
    core.attention = true;
  });
}

/** VMCALL is not an AMD instruction: KVM's #UD intercept sees it, a guest with encrypted state gets the #UD. */
function vmcall(core: Core): Compiled {
  return next(() => {
    if (core.intercepts.nonAutomatic === 'vc') throw undefinedOpcode();
    throw new ExitTrap({ kind: 'vmmcall', instruction: 'vmcall' });
  });
}

function pause(core: Core): Compiled {
  return next(() => {
    if (core.intercepts.pause) throw new ExitTrap({ kind: 'pause' });
  });
}

const readTimeStamp =
  (withAux: boolean) =>
  (core: Core): Compiled =>
    next(() => {
      if (core.cpl !== 0 && (core.state.cr4Lo & Cr4.TSD) !== 0) throw generalProtection();
      if (core.intercepts.rdtsc) {
        core.intercept(withAux ? SvmExitCode.RDTSCP : SvmExitCode.RDTSC, { kind: 'rdtsc', withAux });
      }
      setPair(core, core.readTsc());
      if (!withAux) return;
      core.gpr[RCX] = low(core.state.readMsr(Msr.TSC_AUX) ?? 0n);
      core.gpr[RCX + 1] = 0;
    });

const requireXsave = (core: Core): void => {
  if ((core.state.cr4Lo & Cr4.OSXSAVE) === 0) throw undefinedOpcode();
};

function setExtendedControl(core: Core): Compiled {
  return next(() => {
    requireXsave(core);
    core.requirePrivilege();
    const index = core.gpr[RCX] >>> 0;
    core.intercept(SvmExitCode.XSETBV, { kind: 'xsetbv', index, value: pairValue(core) });
  });
}

function getExtendedControl(core: Core): Compiled {
  return next(() => {
    requireXsave(core);
    if (core.gpr[RCX] !== 0) throw generalProtection();
    setPair(core, core.state.xcr0Value);
  });
}

// ---- interrupts ------------------------------------------------------------------------------------------------

function clearInterrupts(core: Core): Compiled {
  return end(() => {
    if (core.protectedMode && core.cpl > ioPrivilege(core)) throw generalProtection();
    core.setFlags(0, Rflags.IF);
  });
}

/** STI: interrupts wait for one more instruction if they were off. */
function setInterrupts(core: Core): Compiled {
  return end(() => {
    if (core.protectedMode && core.cpl > ioPrivilege(core)) throw generalProtection();
    if ((core.flags.control & Rflags.IF) === 0) core.state.interruptShadow = 'sti';
    core.setFlags(Rflags.IF, Rflags.IF);
  });
}

const setAlignmentCheck =
  (bit: number) =>
  (core: Core): Compiled =>
    end(() => {
      if (core.cpl !== 0) throw undefinedOpcode();
      core.setFlags(bit, Rflags.AC);
    });

const undefinedInstruction = (): Compiled =>
  next(() => {
    throw undefinedOpcode();
  });

// ---- SEV-SNP ---------------------------------------------------------------------------------------------------

/** EAX of PVALIDATE and RMPADJUST where the guest does not map the page as private (not verified). */
const FAIL_INPUT = 1;

/** #UD in a guest without SEV-SNP, #GP outside ring 0. */
function requireReverseMap(core: Core): ReverseMap {
  const { reverseMap } = core.memory.physical;
  if (reverseMap?.snp !== true) throw undefinedOpcode();
  core.requirePrivilege();
  return reverseMap;
}

const reverseMappedPage = (core: Core) => core.memory.reverseMappedPage(core.gpr[RAX], core.code64 ? core.gpr[RAX + 1] : 0);

function setEax(core: Core, value: number): void {
  core.gpr[RAX] = value;
  core.gpr[RAX + 1] = 0;
}

/** PVALIDATE: RAX has the page, ECX its size, EDX bit 0 the state that it shall have. CF: it had it before. */
function pvalidate(core: Core): Compiled {
  return end(() => {
    const reverseMap = requireReverseMap(core);
    const { frame, page, encrypted } = reverseMappedPage(core);
    const large = (core.gpr[RCX] & 1) !== 0;
    const validate = (core.gpr[RDX] & 1) !== 0;
    const answer = encrypted ? reverseMap.pvalidate(frame, page, large, validate) : { result: FAIL_INPUT, changed: false };
    setEax(core, answer.result);
    core.flags.setCarry(answer.changed ? 0 : 1);
    core.flushNested();
  });
}

/** RMPADJUST: RAX has the page, RCX its size, RDX what another VMPL may do with it, and whether it is a save area. */
function rmpadjust(core: Core): Compiled {
  return end(() => {
    const reverseMap = requireReverseMap(core);
    const { frame, encrypted } = reverseMappedPage(core);
    const large = (core.gpr[RCX] & 1) !== 0;
    setEax(core, encrypted ? reverseMap.rmpadjust(frame, large, core.gpr[RDX]) : FAIL_INPUT);
    core.flushNested();
  });
}

// ---- tables and translations -----------------------------------------------------------------------------------

const loadTable =
  (table: 'gdt' | 'idt') =>
  (core: Core, instruction: Instruction): Compiled => {
    const operand = memoryAt(instruction, 0);
    const wide = instruction.bits === 64;
    const size = wide ? 10 : 6;
    const address = linearAddress(core, operand, size, false, instruction.bits);
    /** With a 16-bit operand size the base has 24 bits. */
    const baseMask = instruction.code.endsWith('_16') ? 0xffffff : -1;
    const bytes = new Uint8Array(10);
    const view = new DataView(bytes.buffer);
    const { state, memory } = core;
    return next(() => {
      core.requirePrivilege();
      const lo = address();
      memory.copyIn(lo, memory.hi, size, bytes, 0, false);
      const limit = view.getUint16(0, true);
      const baseLo = view.getInt32(2, true) & baseMask;
      const baseHi = wide ? view.getInt32(6, true) : 0;
      if (wide && !memory.isCanonical(baseLo, baseHi)) throw generalProtection();
      state.setTable(table, { base: join(baseLo, baseHi), limit });
    });
  };

const storeTable =
  (table: 'gdt' | 'idt') =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = instruction.bits === 64 ? 10 : 6;
    const address = linearAddress(core, memoryAt(instruction, 0), size, true, instruction.bits);
    const bytes = new Uint8Array(10);
    const view = new DataView(bytes.buffer);
    const { state, memory } = core;
    return next(() => {
      requireNoUmip(core);
      const { base, limit } = state.table(table);
      view.setUint16(0, limit, true);
      view.setBigUint64(2, base, true);
      const lo = address();
      memory.copyOut(lo, memory.hi, size, bytes, 0);
    });
  };

function invalidatePage(core: Core, instruction: Instruction): Compiled {
  const operand = memoryAt(instruction, 0);
  const address = effectiveAddress(core, operand);
  const { memory, state } = core;
  return end(() => {
    core.requirePrivilege();
    const offset = address();
    const base =
      instruction.bits === 64 && operand.segment !== Seg.FS && operand.segment !== Seg.GS ? 0 : state.baseLo[operand.segment];
    memory.invalidatePage((offset + base) | 0, memory.hi);
    core.epoch++;
  });
}

const requireFsGsBase = (core: Core): void => {
  if ((core.state.cr4Lo & Cr4.FSGSBASE) === 0) throw undefinedOpcode();
};

const readBase =
  (segment: number) =>
  (core: Core, instruction: Instruction): Compiled => {
    const write = gprWriter(core, gprAt(instruction, 0));
    const { baseLo, baseHi } = core.state;
    return next(() => {
      requireFsGsBase(core);
      write(baseLo[segment], baseHi[segment]);
    });
  };

const writeBase =
  (segment: number) =>
  (core: Core, instruction: Instruction): Compiled => {
    const { size } = gprAt(instruction, 0);
    const read = reader(core, instruction, 0, size);
    const { baseLo, baseHi } = core.state;
    return next(() => {
      requireFsGsBase(core);
      const lo = read();
      const hi = size === 8 ? core.hi : 0;
      if (!core.memory.isCanonical(lo, hi)) throw generalProtection();
      baseLo[segment] = lo;
      baseHi[segment] = hi;
    });
  };

function swapGs(core: Core): Compiled {
  const { state } = core;
  return next(() => {
    core.requirePrivilege();
    const base = state.readMsr(Msr.GS_BASE) ?? 0n;
    state.writeMsr(Msr.GS_BASE, state.readMsr(Msr.KERNEL_GS_BASE) ?? 0n);
    state.writeMsr(Msr.KERNEL_GS_BASE, base);
  });
}

/** What concerns the machine and not the program: MSRs, exits, interrupt flags, tables, TLB. */
export const system: InstructionGroup = {
  Rdmsr: readMsr,
  Wrmsr: writeMsr,
  Cpuid: intercepted(SvmExitCode.CPUID, { kind: 'cpuid' }, false),
  Rdpmc: intercepted(SvmExitCode.RDPMC, { kind: 'rdpmc' }, false),
  Invd: intercepted(SvmExitCode.INVD, { kind: 'invd' }, true),
  Wbinvd: intercepted(SvmExitCode.WBINVD, { kind: 'wbinvd' }, true),
  Wbnoinvd: intercepted(SvmExitCode.WBINVD, { kind: 'wbinvd' }, true),
  Monitor: intercepted(SvmExitCode.MONITOR, { kind: 'monitor' }, true),
  Mwait: intercepted(SvmExitCode.MWAIT, { kind: 'mwait' }, true),
  Vmmcall: intercepted(SvmExitCode.VMMCALL, { kind: 'vmmcall', instruction: 'vmmcall' }, false),
  Vmcall: vmcall,
  Vmgexit: vmgexit,
  Tdcall: exits({ kind: 'tdcall' }, true),
  Pvalidate: pvalidate,
  Rmpadjust: rmpadjust,
  Hlt: exits({ kind: 'hlt' }, true),
  Pause: pause,
  Rdtsc: readTimeStamp(false),
  Rdtscp: readTimeStamp(true),
  Xsetbv: setExtendedControl,
  Xgetbv: getExtendedControl,
  Cli: clearInterrupts,
  Sti: setInterrupts,
  Clac: setAlignmentCheck(0),
  Stac: setAlignmentCheck(Rflags.AC),
  Ud0: undefinedInstruction,
  Ud1: undefinedInstruction,
  Ud2: undefinedInstruction,
  // There is no transactional memory.
  Xabort: undefinedInstruction,
  Xbegin: undefinedInstruction,
  Xend: undefinedInstruction,
  Lgdt: loadTable('gdt'),
  Lidt: loadTable('idt'),
  Sgdt: storeTable('gdt'),
  Sidt: storeTable('idt'),
  Invlpg: invalidatePage,
  Rdfsbase: readBase(Seg.FS),
  Rdgsbase: readBase(Seg.GS),
  Wrfsbase: writeBase(Seg.FS),
  Wrgsbase: writeBase(Seg.GS),
  Swapgs: swapGs,
};
