import type { Core } from './core.js';

/* One decoded instruction, in the terms of the compiler. */

export type OperandSize = 1 | 2 | 4 | 8;

export interface GprOperand {
  readonly kind: 'gpr';
  readonly size: OperandSize;
  readonly index: number;
  /** AH, CH, DH, BH. */
  readonly high: boolean;
}

export interface MemoryOperand {
  readonly kind: 'memory';
  /** Bytes, 0 where the instruction has no one size (LEA, INVLPG, FXSAVE). */
  readonly size: number;
  readonly segment: number;
  /** General register numbers; -1: none. */
  readonly base: number;
  readonly index: number;
  readonly scale: number;
  /** For RIP-relative operands already the address. */
  readonly displacementLo: number;
  readonly displacementHi: number;
  readonly addressSize: 16 | 32 | 64;
}

export interface ImmediateOperand {
  readonly kind: 'immediate';
  /** Sign-extended to 64 bits where the instruction says so. */
  readonly lo: number;
  readonly hi: number;
}

export type Operand =
  | GprOperand
  | MemoryOperand
  | ImmediateOperand
  | { readonly kind: 'xmm' | 'segment' | 'control' | 'debug'; readonly index: number }
  | { readonly kind: 'branch'; readonly lo: number; readonly hi: number }
  | { readonly kind: 'far'; readonly selector: number; readonly offset: number }
  | { readonly kind: 'other' };

export interface Instruction {
  /** As the decoder library names it: 'Add', 'Movsb'. */
  readonly mnemonic: string;
  /** The exact encoding, as the decoder library names it: 'Retnd_imm16'. */
  readonly code: string;
  readonly length: number;
  /** RIP of the instruction and of the one that follows. */
  readonly ripLo: number;
  readonly ripHi: number;
  readonly nextLo: number;
  readonly nextHi: number;
  readonly operands: readonly Operand[];
  readonly repeat: 'none' | 'repe' | 'repne';
  /** Segment of the implicit source of a string instruction. */
  readonly stringSegment: number;
  readonly addressSize: 16 | 32 | 64;
  readonly bits: 16 | 32 | 64;
}

/** Does what the instruction does; throws to give it up. */
export type Operation = () => void;

/**
 * A compiled instruction. `next`: falls through. `end`: falls through, but what follows has to be looked up again
 * (mode, flags or translations may have changed). `branch`: has set RIP.
 */
export interface Compiled {
  readonly run: Operation;
  readonly flow: 'next' | 'end' | 'branch';
}

/** Instructions by the decoder library's mnemonic. */
export type InstructionGroup = Readonly<Record<string, (core: Core, instruction: Instruction) => Compiled>>;

export const next = (run: Operation): Compiled => ({ run, flow: 'next' });
export const end = (run: Operation): Compiled => ({ run, flow: 'end' });
export const branch = (run: Operation): Compiled => ({ run, flow: 'branch' });
