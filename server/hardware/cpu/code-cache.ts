import type { Frame, MemoryKey } from '../dram.js';
import { compile } from './compiler.js';
import type { Core } from './core.js';
import { type DecodeResult, InstructionDecoder, MAX_INSTRUCTION_LENGTH } from './decoder.js';
import type { Instruction, Operation } from './instruction.js';
import { Seg, Vector } from './registers.js';
import type { TlbEntry } from './tlb.js';
import { ExitTrap, GuestFault } from './traps.js';

const PAGE = 4096;
/** Instructions a block has at most. */
const BLOCK_LENGTH = 32;
/** Blocks a CPU keeps at most; then it begins anew. */
const BLOCKS = 32_768;
const DIRECT = 4096;

/** A page that a block was decoded from, and what its bytes were. */
class CodePage {
  private readonly frame: Frame;
  private readonly key: MemoryKey | null;
  private readonly bytes: Uint8Array;
  private generation: number;
  private epoch: number;

  constructor(
    entry: TlbEntry,
    private readonly offset: number,
    length: number,
  ) {
    this.frame = entry.frame;
    this.key = entry.key;
    this.bytes = entry.bytes.slice(offset, offset + length);
    this.frame.codeCached = true;
    this.generation = this.frame.generation;
    this.epoch = this.frame.codeEpoch;
  }

  /** Nobody has written to the page since. */
  get isCurrent(): boolean {
    return this.frame.codeEpoch === this.epoch && this.frame.generation === this.generation;
  }

  /** Compares the bytes: what was written may have been data beside the code. */
  revalidate(entry: TlbEntry): boolean {
    if (entry.frame !== this.frame || entry.key !== this.key) return false;
    const now = this.frame.view(this.key);
    for (let i = 0; i < this.bytes.length; i++) {
      if (now[this.offset + i] !== this.bytes[i]) return false;
    }
    this.frame.codeCached = true;
    this.generation = this.frame.generation;
    this.epoch = this.frame.codeEpoch;
    return true;
  }
}

/** A run of instructions that is entered at the top and left at the end, by a fault, or when it is overwritten. */
export class Block {
  /** The core's epoch in which the translation of RIP was last looked up. */
  epoch = 0;
  readonly operations: Operation[] = [];
  readonly instructions: Instruction[] = [];
  /** Byte offset of each instruction, and of the end. */
  readonly offsets: number[] = [0];
  /** RIP has to be set to the end: the last instruction is no branch. */
  fallsThrough = true;
  pages: readonly [CodePage] | readonly [CodePage, CodePage] | null = null;

  constructor(
    readonly ripLo: number,
    readonly ripHi: number,
    readonly mode: number,
  ) {}

  get isCurrent(): boolean {
    const { pages } = this;
    return pages?.[0].isCurrent === true && (pages.length === 1 || pages[1].isCurrent);
  }
}

/** Decoded and compiled code, found by RIP while translations stand still and by frame and offset otherwise. */
export class CodeCache {
  private decoder: InstructionDecoder | null = null;
  private readonly direct: (Block | null)[] = new Array<Block | null>(DIRECT).fill(null);
  private byFrame = new WeakMap<Frame, Map<number, Block>>();
  private count = 0;

  constructor(private readonly core: Core) {}

  /** The block at RIP. Throws the fault of the instruction fetch. */
  find(): Block {
    const { state, epoch } = this.core;
    const { ripLo, ripHi } = state;
    const slot = (ripLo ^ (ripLo >>> 12)) & (DIRECT - 1);
    const block = this.direct[slot];
    if (block !== null && block.ripLo === ripLo && block.ripHi === ripHi && block.epoch === epoch && block.isCurrent)
      return block;
    const found = this.lookUp(ripLo, ripHi);
    found.epoch = this.core.epoch;
    this.direct[slot] = found;
    return found;
  }

  /** What lies at RIP, as far as it can be fetched. */
  bytesAtRip(): Uint8Array {
    const { state, memory } = this.core;
    const { ripLo, ripHi, cr2Lo, cr2Hi } = state;
    const bytes: number[] = [];
    try {
      for (let i = 0; i < MAX_INSTRUCTION_LENGTH; i++) {
        const at = (ripLo + i) | 0;
        const { lo, hi } = this.linear(at, at >>> 0 < ripLo >>> 0 ? (ripHi + 1) | 0 : ripHi);
        bytes.push(memory.fetchPage(lo, hi).bytes[lo & (PAGE - 1)]);
      }
    } catch (trap) {
      if (!(trap instanceof GuestFault || trap instanceof ExitTrap)) throw trap;
      state.cr2Lo = cr2Lo;
      state.cr2Hi = cr2Hi;
    }
    return Uint8Array.from(bytes);
  }

  private linear(ripLo: number, ripHi: number): { readonly lo: number; readonly hi: number } {
    const { core } = this;
    if (core.code64) return { lo: ripLo, hi: ripHi };
    if (ripLo >>> 0 > core.state.limit[Seg.CS]) throw new GuestFault(Vector.GP, 0);
    return { lo: (core.state.baseLo[Seg.CS] + ripLo) | 0, hi: 0 };
  }

  private lookUp(ripLo: number, ripHi: number): Block {
    const { core } = this;
    const { lo, hi } = this.linear(ripLo, ripHi);
    const entry = core.memory.fetchPage(lo, hi);
    const offset = lo & (PAGE - 1);
    const mode = modeOf(core);
    const blocks = this.blocksOf(entry.frame);
    const key = offset * 16 + mode;
    const known = blocks.get(key);
    if (known !== undefined && known.ripLo === ripLo && known.ripHi === ripHi && this.revalidate(known, entry, lo, hi))
      return known;
    const block = this.build(new Block(ripLo, ripHi, mode), entry, lo, hi);
    blocks.set(key, block);
    this.count++;
    return block;
  }

  private blocksOf(frame: Frame): Map<number, Block> {
    if (this.count > BLOCKS) {
      this.byFrame = new WeakMap();
      this.direct.fill(null);
      this.count = 0;
    }
    let blocks = this.byFrame.get(frame);
    if (blocks === undefined) {
      blocks = new Map();
      this.byFrame.set(frame, blocks);
    }
    return blocks;
  }

  private revalidate(block: Block, entry: TlbEntry, lo: number, hi: number): boolean {
    const { pages } = block;
    if (pages === null || !pages[0].revalidate(entry)) return false;
    return pages.length === 1 || pages[1].revalidate(this.nextPage(lo, hi));
  }

  private nextPage(lo: number, hi: number): TlbEntry {
    const nextLo = ((lo | (PAGE - 1)) + 1) | 0;
    return this.core.memory.fetchPage(nextLo, this.core.code64 && nextLo === 0 ? (hi + 1) | 0 : hi);
  }

  private build(block: Block, entry: TlbEntry, lo: number, hi: number): Block {
    const offset = lo & (PAGE - 1);
    const inSegment = this.bytesLeftInSegment(block.ripLo);
    const first = entry.bytes.subarray(offset, Math.min(PAGE, offset + inSegment));
    if (this.decode(block, first)) {
      block.pages = [new CodePage(entry, offset, block.offsets[block.offsets.length - 1])];
      return block;
    }
    if (inSegment <= first.length) throw new GuestFault(Vector.GP, 0);
    const second = this.nextPage(lo, hi);
    const rest = Math.min(MAX_INSTRUCTION_LENGTH, inSegment) - first.length;
    const bytes = new Uint8Array([...first, ...second.bytes.subarray(0, rest)]);
    if (!this.decode(block, bytes)) throw new GuestFault(Vector.GP, 0);
    block.pages = [new CodePage(entry, offset, first.length), new CodePage(second, 0, rest)];
    return block;
  }

  private bytesLeftInSegment(ripLo: number): number {
    const { core } = this;
    return core.code64 ? PAGE : core.state.limit[Seg.CS] - (ripLo >>> 0) + 1;
  }

  /** Fills the block; false when not even one instruction is whole. */
  private decode(block: Block, bytes: Uint8Array): boolean {
    this.decoder ??= new InstructionDecoder();
    this.decoder.decode(bytes, this.core.codeSize, block.ripLo, block.ripHi, (result) => this.append(block, result, bytes));
    return block.operations.length > 0;
  }

  /** Adds an instruction; false when the block ends with it. */
  private append(block: Block, result: DecodeResult, bytes: Uint8Array): boolean {
    if (result.kind === 'truncated') return false;
    if (result.kind === 'invalid') {
      if (block.operations.length === 0) {
        // Any of the bytes that an instruction may have can be what makes it invalid, so all of them are compared later.
        block.operations.push(raiseUndefined);
        block.offsets.push(Math.min(bytes.length, MAX_INSTRUCTION_LENGTH));
      }
      return false;
    }
    const { instruction } = result;
    const compiled = compile(this.core, instruction);
    block.operations.push(compiled.run);
    block.instructions.push(instruction);
    block.offsets.push(block.offsets[block.offsets.length - 1] + instruction.length);
    block.fallsThrough = compiled.flow !== 'branch';
    return compiled.flow === 'next' && block.operations.length < BLOCK_LENGTH;
  }
}

const raiseUndefined: Operation = () => {
  throw new GuestFault(Vector.UD, null);
};

/** What of the mode compiled code depends on, as a number below 16. */
const modeOf = (core: Core): number => core.codeSize / 16 - 1 + (core.stackSize / 16 - 1) * 4;
