import { BlockEncoder, Code, Instruction, MemoryOperand, Register } from 'iced-x86';

export { Register };

/** Of what mode the code is. */
export type Bits = 16 | 32 | 64;

/** A place in the code that a branch may name before `bind` has given it one. */
export type Label = bigint;

const NEAR_JE = { 16: Code.Je_rel16, 32: Code.Je_rel32_32, 64: Code.Je_rel32_64 } as const;

/** [base] */
const at = (base: Register): MemoryOperand => new MemoryOperand(base, Register.None, 1, 0n, 0, false, Register.None);

/**
 * Assembles a guest, an instruction a line. Operands are in Intel order.
 *
 * @example
 * ```ts
 * const a = new Assembler(32);
 * const again = a.label();
 * const code = a.bind(again).load32(Register.EAX, Register.EBX).je(again).hlt().encode(0x1000);
 * ```
 */
export class Assembler {
  private readonly block: BlockEncoder;
  private nextLabel = 1n;
  private bound: Label = 0n;

  constructor(readonly bits: Bits) {
    this.block = new BlockEncoder(bits, 0);
  }

  label(): Label {
    return this.nextLabel++;
  }

  /** The next instruction is where the label is. */
  bind(label: Label): this {
    this.bound = label;
    return this;
  }

  /** mov r8, value */
  mov8(register: Register, value: number): this {
    return this.add(Instruction.createRegU32(Code.Mov_r8_imm8, register, value));
  }

  /** mov r32, value: in 64-bit mode the upper half becomes 0 */
  mov32(register: Register, value: number): this {
    return this.add(Instruction.createRegU32(Code.Mov_r32_imm32, register, value >>> 0));
  }

  /** mov dword [base], value */
  store32(base: Register, value: number): this {
    return this.add(Instruction.createMemU32(Code.Mov_rm32_imm32, at(base), value));
  }

  /** mov r64, [base] */
  load64(register: Register, base: Register): this {
    return this.add(Instruction.createRegMem(Code.Mov_r64_rm64, register, at(base)));
  }

  /** cmp r32, r32 */
  compare(left: Register, right: Register): this {
    return this.add(Instruction.createRegReg(Code.Cmp_r32_rm32, left, right));
  }

  /** out port, al */
  outByte(port: number): this {
    return this.add(Instruction.createU32Reg(Code.Out_imm8_AL, port, Register.AL));
  }

  /** out dx, eax */
  outDword(): this {
    return this.add(Instruction.createRegReg(Code.Out_DX_EAX, Register.DX, Register.EAX));
  }

  /** rep insb: from port DX to [RDI] */
  repInsb(): this {
    return this.add(Instruction.createRepInsb(this.bits));
  }

  je(label: Label): this {
    return this.add(Instruction.createBranch(NEAR_JE[this.bits], label));
  }

  hlt(): this {
    return this.add(Instruction.create(Code.Hlt));
  }

  /** Raises #UD. */
  ud2(): this {
    return this.add(Instruction.create(Code.Ud2));
  }

  /** Hexadecimal, for code that begins at `address`. */
  encode(address: number): string {
    return Buffer.from(this.block.encode(BigInt(address))).toString('hex');
  }

  private add(instruction: Instruction): this {
    instruction.ip = this.bound;
    this.bound = 0n;
    this.block.add(instruction);
    return this;
  }
}
