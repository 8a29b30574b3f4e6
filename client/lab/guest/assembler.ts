import { BlockEncoder, Code, Instruction, MemoryOperand, Register } from 'iced-x86';

/** Of what mode the code is: flat 32-bit protected mode, or 64-bit mode. */
export type Bitness = 32 | 64;

/** A place in the code that branches may name before it is bound. */
export type Label = bigint;

/** Size of a displacement as iced-x86 wants it: 0 none, 1 any that fits in 8 bits, else the width of an address. */
const displacementSize = (bitness: Bitness, displacement: number): number => {
  if (displacement === 0) return 0;
  return displacement >= -128 && displacement < 128 ? 1 : bitness / 8;
};

/**
 * Assembles one routine, instruction by instruction. Mnemonics are methods, as far as the guests need them; branches find
 * their labels when the routine is encoded, whose address is chosen then.
 *
 * @example
 * ```ts
 * const a = new Assembler(32);
 * const again = a.here();
 * a.hlt().jmp(again);
 * const code = a.encode(0x4000);
 * ```
 */
export class Assembler {
  private readonly block: BlockEncoder;
  private nextId = 1n;

  constructor(readonly bitness: Bitness) {
    this.block = new BlockEncoder(bitness, 0);
  }

  /** A label that `bind` gives a place. */
  label(): Label {
    return this.nextId++;
  }

  private bound: Label | null = null;

  /** The next instruction is where the label is. */
  bind(label: Label): this {
    this.bound = label;
    return this;
  }

  /** A label at the next instruction. */
  here(): Label {
    const label = this.label();
    this.bind(label);
    return label;
  }

  /** r32 = value; in 64-bit mode the upper half becomes 0. */
  movImm(register: Register, value: number): this {
    return this.add(Instruction.createRegU32(Code.Mov_r32_imm32, register, value >>> 0));
  }

  /** r8 = value */
  movImm8(register: Register, value: number): this {
    return this.add(Instruction.createRegU32(Code.Mov_r8_imm8, register, value));
  }

  /** [base + displacement] = r32 */
  store32(base: Register, displacement: number, register: Register): this {
    return this.add(Instruction.createMemReg(Code.Mov_rm32_r32, this.at(base, displacement), register));
  }

  /** [base + displacement] = r64 */
  store64(base: Register, displacement: number, register: Register): this {
    return this.add(Instruction.createMemReg(Code.Mov_rm64_r64, this.at(base, displacement), register));
  }

  /** byte [base + displacement] = value */
  storeImm8(base: Register, displacement: number, value: number): this {
    return this.add(Instruction.createMemU32(Code.Mov_rm8_imm8, this.at(base, displacement), value));
  }

  /** word [base + displacement] = value */
  storeImm16(base: Register, displacement: number, value: number): this {
    return this.add(Instruction.createMemU32(Code.Mov_rm16_imm16, this.at(base, displacement), value));
  }

  /** r32 = [base + displacement] */
  load32(register: Register, base: Register, displacement: number): this {
    return this.add(Instruction.createRegMem(Code.Mov_r32_rm32, register, this.at(base, displacement)));
  }

  /** r64 = [base + displacement] */
  load64(register: Register, base: Register, displacement: number): this {
    return this.add(Instruction.createRegMem(Code.Mov_r64_rm64, register, this.at(base, displacement)));
  }

  /** r64 = r64 */
  mov64(to: Register, from: Register): this {
    return this.add(Instruction.createRegReg(Code.Mov_r64_rm64, to, from));
  }

  /** r64 = base + displacement */
  lea64(register: Register, base: Register, displacement: number): this {
    return this.add(Instruction.createRegMem(Code.Lea_r64_m, register, this.at(base, displacement)));
  }

  /** dword [base] += 1 */
  inc32(base: Register): this {
    return this.add(Instruction.createMem(Code.Inc_rm32, this.at(base)));
  }

  /** qword [base + displacement] += value */
  add64(base: Register, displacement: number, value: number): this {
    return this.add(Instruction.createMemI32(Code.Add_rm64_imm8, this.at(base, displacement), value));
  }

  /** r32 += value */
  addImm(register: Register, value: number): this {
    return this.add(Instruction.createRegI32(Code.Add_rm32_imm8, register, value));
  }

  /** r64 += value */
  addImm64(register: Register, value: number): this {
    return this.add(Instruction.createRegI32(Code.Add_rm64_imm8, register, value));
  }

  /** r32 <<= bits */
  shl(register: Register, bits: number): this {
    return this.add(Instruction.createRegU32(Code.Shl_rm32_imm8, register, bits));
  }

  /** r32 |= value */
  orImm(register: Register, value: number): this {
    return this.add(Instruction.createRegI32(Code.Or_rm32_imm8, register, value));
  }

  /** r32 = 0 */
  clear(register: Register): this {
    return this.add(Instruction.createRegReg(Code.Xor_r32_rm32, register, register));
  }

  /** Compares [base + displacement] with a value. */
  cmp32(base: Register, displacement: number, value: number): this {
    return this.add(Instruction.createMemI32(Code.Cmp_rm32_imm32, this.at(base, displacement), value));
  }

  push(register32: Register, register64: Register): this {
    return this.add(
      this.bitness === 32 ? Instruction.createReg(Code.Push_r32, register32) : Instruction.createReg(Code.Push_r64, register64),
    );
  }

  pop(register32: Register, register64: Register): this {
    return this.add(
      this.bitness === 32 ? Instruction.createReg(Code.Pop_r32, register32) : Instruction.createReg(Code.Pop_r64, register64),
    );
  }

  /** The byte in AL goes to the port in DX. */
  outDxAl(): this {
    return this.add(Instruction.createRegReg(Code.Out_DX_AL, Register.DX, Register.AL));
  }

  je(label: Label): this {
    return this.add(Instruction.createBranch(this.bitness === 32 ? Code.Je_rel8_32 : Code.Je_rel8_64, label));
  }

  jmp(label: Label): this {
    return this.add(Instruction.createBranch(this.bitness === 32 ? Code.Jmp_rel8_32 : Code.Jmp_rel8_64, label));
  }

  sti(): this {
    return this.add(Instruction.create(Code.Sti));
  }

  hlt(): this {
    return this.add(Instruction.create(Code.Hlt));
  }

  iret(): this {
    return this.add(Instruction.create(this.bitness === 32 ? Code.Iretd : Code.Iretq));
  }

  wrmsr(): this {
    return this.add(Instruction.create(Code.Wrmsr));
  }

  vmgexit(): this {
    return this.add(Instruction.create(Code.Vmgexit));
  }

  /** The machine code of the routine at `address`. The assembler is used up. */
  encode(address: number): Uint8Array {
    const code = this.block.encode(BigInt(address));
    this.block.free();
    return code;
  }

  /** `[base + displacement]` */
  private at(base: Register, displacement = 0): MemoryOperand {
    const size = displacementSize(this.bitness, displacement);
    return new MemoryOperand(base, Register.None, 1, BigInt(displacement), size, false, Register.None);
  }

  private add(instruction: Instruction): this {
    instruction.ip = this.bound ?? this.label();
    this.bound = null;
    this.block.add(instruction);
    instruction.free();
    return this;
  }
}
