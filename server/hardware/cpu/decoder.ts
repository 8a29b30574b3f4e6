import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';
import type { Instruction, Operand, OperandSize } from './instruction.js';
import { Seg } from './registers.js';

type Library = typeof Iced;

/** Longest legal instruction, bytes. */
export const MAX_INSTRUCTION_LENGTH = 15;

export type DecodeResult =
  | { readonly kind: 'instruction'; readonly instruction: Instruction }
  /** The bytes end inside the instruction. */
  | { readonly kind: 'truncated' }
  /** No such instruction: #UD. */
  | { readonly kind: 'invalid' };

const GPR_NAMES = ['AX', 'CX', 'DX', 'BX', 'SP', 'BP', 'SI', 'DI'] as const;

/**
 * Decodes x86 machine code with iced-x86. The library (WebAssembly) is loaded when the first decoder is made: the
 * daemon starts without it.
 */
export class InstructionDecoder {
  private readonly iced: Library;
  private readonly registers: ReadonlyMap<number, Operand>;
  private readonly segments: ReadonlyMap<number, number>;
  private readonly repeatable: RegExp = /^(Movs|Cmps|Scas|Lods|Stos|Ins|Outs)[bwdq]$/;

  constructor() {
    const load: (id: string) => Library = createRequire(import.meta.url);
    this.iced = load('iced-x86');
    this.registers = registerTable(this.iced);
    const { Register } = this.iced;
    this.segments = new Map<number, number>([
      [Register.ES, Seg.ES],
      [Register.CS, Seg.CS],
      [Register.SS, Seg.SS],
      [Register.DS, Seg.DS],
      [Register.FS, Seg.FS],
      [Register.GS, Seg.GS],
    ]);
  }

  /**
   * Decodes instructions one after the other from `bytes`.
   *
   * @param visit gets each result; decoding goes on while it returns true
   */
  decode(bytes: Uint8Array, bits: 16 | 32 | 64, ripLo: number, ripHi: number, visit: (result: DecodeResult) => boolean): void {
    const { iced } = this;
    const decoder = new iced.Decoder(bits, bytes, iced.DecoderOptions.AMD);
    const decoded = new iced.Instruction();
    try {
      decoder.ip = (BigInt(ripHi >>> 0) << 32n) | BigInt(ripLo >>> 0);
      let offset = 0;
      for (let more = true; more && decoder.canDecode; ) {
        decoder.decodeOut(decoded);
        if (decoded.code === iced.Code.INVALID) {
          const truncated = decoder.lastError === iced.DecoderError.NoMoreBytes && bytes.length - offset < MAX_INSTRUCTION_LENGTH;
          visit({ kind: truncated ? 'truncated' : 'invalid' });
          return;
        }
        more = visit({ kind: 'instruction', instruction: this.translate(decoded, bits) });
        offset += decoded.length;
      }
    } finally {
      decoded.free();
      decoder.free();
    }
  }

  private translate(decoded: Iced.Instruction, bits: 16 | 32 | 64): Instruction {
    const { iced } = this;
    const mnemonic = iced.Mnemonic[decoded.mnemonic];
    const rip = decoded.ip;
    const following = decoded.nextIP;
    const operands: Operand[] = [];
    const count = decoded.opCount;
    let addressSize: 16 | 32 | 64 = bits;
    let stringSegment: number = Seg.DS;
    for (let i = 0; i < count; i++) {
      const kind = decoded.opKind(i);
      const size = this.addressSizeOf(kind);
      if (size !== null) {
        addressSize = size;
        stringSegment = this.segments.get(decoded.memorySegment) ?? Seg.DS;
      }
      const operand = this.operand(decoded, i, kind, bits);
      if (operand.kind === 'memory') addressSize = operand.addressSize;
      operands.push(operand);
    }
    if (/^(Loop|J.?cxz)/.test(mnemonic)) addressSize = this.counterSize(iced.Code[decoded.code], bits);
    const repeats = this.repeatable.test(mnemonic);
    return {
      mnemonic,
      code: iced.Code[decoded.code],
      length: decoded.length,
      ripLo: low(rip),
      ripHi: high(rip),
      nextLo: low(following),
      nextHi: bits === 64 ? high(following) : 0,
      operands,
      repeat: !repeats ? 'none' : decoded.hasRepnePrefix ? 'repne' : decoded.hasRepePrefix ? 'repe' : 'none',
      stringSegment,
      addressSize,
      bits,
    };
  }

  /** LOOP and JCXZ name their counter in the encoding: 'Loop_rel8_32_ECX', 'Jecxz_rel8_64'. */
  private counterSize(code: string, bits: 16 | 32 | 64): 16 | 32 | 64 {
    if (/_ECX$|^Jecxz/.test(code)) return 32;
    if (/_RCX$|^Jrcxz/.test(code)) return 64;
    return /_CX$|^Jcxz/.test(code) ? 16 : bits;
  }

  /** Address size of the implicit memory operand of a string instruction. */
  private addressSizeOf(kind: number): 16 | 32 | 64 | null {
    const { OpKind } = this.iced;
    switch (kind) {
      case OpKind.MemorySegSI:
      case OpKind.MemorySegDI:
      case OpKind.MemoryESDI:
        return 16;
      case OpKind.MemorySegESI:
      case OpKind.MemorySegEDI:
      case OpKind.MemoryESEDI:
        return 32;
      case OpKind.MemorySegRSI:
      case OpKind.MemorySegRDI:
      case OpKind.MemoryESRDI:
        return 64;
      default:
        return null;
    }
  }

  private operand(decoded: Iced.Instruction, index: number, kind: number, bits: 16 | 32 | 64): Operand {
    const { OpKind } = this.iced;
    switch (kind) {
      case OpKind.Register:
        return this.registers.get(decoded.opRegister(index)) ?? { kind: 'other' };
      case OpKind.Memory:
        return this.memoryOperand(decoded, bits);
      case OpKind.NearBranch16:
      case OpKind.NearBranch32:
      case OpKind.NearBranch64: {
        const target = decoded.nearBranchTarget;
        return { kind: 'branch', lo: low(target), hi: high(target) };
      }
      case OpKind.FarBranch16:
        return { kind: 'far', selector: decoded.farBranchSelector, offset: decoded.farBranch16 };
      case OpKind.FarBranch32:
        return { kind: 'far', selector: decoded.farBranchSelector, offset: decoded.farBranch32 };
      case OpKind.Immediate8:
      case OpKind.Immediate8_2nd:
      case OpKind.Immediate16:
      case OpKind.Immediate32:
      case OpKind.Immediate64:
      case OpKind.Immediate8to16:
      case OpKind.Immediate8to32:
      case OpKind.Immediate8to64:
      case OpKind.Immediate32to64: {
        const value = decoded.immediate(index);
        return { kind: 'immediate', lo: low(value), hi: high(value) };
      }
      default:
        return { kind: 'other' };
    }
  }

  private memoryOperand(decoded: Iced.Instruction, bits: 16 | 32 | 64): Operand {
    const { iced } = this;
    const base = this.generalRegister(decoded.memoryBase);
    const index = this.generalRegister(decoded.memoryIndex);
    // Halved on both ways: V8 of Node 20 fails an assertion when it optimises one of two unsigned BigInts cut to 32 bits.
    const displacement = decoded.isIpRelMemoryOperand
      ? halves(decoded.ipRelMemoryAddress)
      : halves(decoded.memoryDisplacementU64);
    const fromRip32 = decoded.memoryBase === iced.Register.EIP;
    const registerSize = base?.size ?? index?.size;
    const displacementSize = decoded.memoryDisplSize;
    const addressBytes = fromRip32
      ? 4
      : (registerSize ?? (displacementSize === 1 || displacementSize === 0 ? bits / 8 : displacementSize));
    return {
      kind: 'memory',
      size: iced.MemorySizeExt.size(decoded.memorySize),
      segment: this.segments.get(decoded.memorySegment) ?? Seg.DS,
      base: base?.index ?? -1,
      index: index?.index ?? -1,
      scale: decoded.memoryIndexScale,
      displacementLo: displacement.lo,
      displacementHi: displacement.hi,
      addressSize: addressBytes === 2 ? 16 : addressBytes === 4 ? 32 : 64,
    };
  }

  private generalRegister(register: number): { readonly index: number; readonly size: OperandSize } | null {
    const operand = this.registers.get(register);
    return operand?.kind === 'gpr' ? operand : null;
  }
}

const low = (value: bigint): number => Number(BigInt.asIntN(32, value));
const high = (value: bigint): number => Number(BigInt.asIntN(32, value >> 32n));
const halves = (value: bigint): { readonly lo: number; readonly hi: number } => ({ lo: low(value), hi: high(value) });

function registerTable(iced: Library): ReadonlyMap<number, Operand> {
  const table = new Map<number, Operand>();
  const { Register } = iced;
  const add = (name: string, operand: Operand): void => {
    const register = Object.entries(Register).find(([key]) => key === name)?.[1];
    if (typeof register !== 'number') throw new Error(`the decoder has no register ${name}`);
    table.set(register, operand);
  };
  const gpr = (name: string, size: OperandSize, index: number, high = false): void => {
    add(name, { kind: 'gpr', size, index, high });
  };
  GPR_NAMES.forEach((name, index) => {
    gpr(name, 2, index);
    gpr(`E${name}`, 4, index);
    gpr(`R${name}`, 8, index);
  });
  ['AL', 'CL', 'DL', 'BL', 'SPL', 'BPL', 'SIL', 'DIL'].forEach((name, index) => {
    gpr(name, 1, index);
  });
  ['AH', 'CH', 'DH', 'BH'].forEach((name, index) => {
    gpr(name, 1, index, true);
  });
  for (let index = 8; index < 16; index++) {
    gpr(`R${index}L`, 1, index);
    gpr(`R${index}W`, 2, index);
    gpr(`R${index}D`, 4, index);
    gpr(`R${index}`, 8, index);
  }
  ['ES', 'CS', 'SS', 'DS', 'FS', 'GS'].forEach((name, index) => {
    add(name, { kind: 'segment', index });
  });
  for (let index = 0; index < 16; index++) {
    add(`XMM${index}`, { kind: 'xmm', index });
    add(`CR${index}`, { kind: 'control', index });
    add(`DR${index}`, { kind: 'debug', index });
  }
  return table;
}
