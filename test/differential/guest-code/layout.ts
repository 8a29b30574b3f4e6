/**
 * Where things lie in the 40 KiB of RAM of a machine that runs generated code. Every vector ends in an HLT of its own, so
 * that RIP tells which exception was raised; the error code is on the stack.
 */
export const LAYOUT = {
  ivt: 0x0000,
  /** HLT for each of 256 vectors. */
  handlers: 0x0500,
  gdt: 0x0800,
  idt: 0x1000,
  code: 0x2000,
  data: 0x3000,
  dataBytes: 0x1000,
  stack: 0x4000,
  stackTop: 0x4800,
  pageTables: 0x5000,
  ramBytes: 0xa000,
} as const;

export const SELECTOR = { code: 0x08, data: 0x10, code16: 0x18, code64: 0x20, notPresent: 0x28, readOnly: 0x30 } as const;

/**
 * The modes of operation that code is generated for. Paging is on in the last two: kvm_pvm, whose answers these tests
 * compare with, drops CR0.PG outside long mode.
 */
export const MODES = ['real', 'protected', 'compatibility', 'long'] as const;
export type Mode = (typeof MODES)[number];

/** EFER.LMA is set: the IDT has gates of 16 bytes, and paging is on. */
export const isLong = (mode: Mode): boolean => mode === 'compatibility' || mode === 'long';

const HLT = 0xf4;
const VECTORS = 256;
const PRESENT_WRITABLE_USER = 7n;
const PAGE_SIZE_BIT = 0x80n;

/** Descriptors of flat segments, in the order of SELECTOR. */
const DESCRIPTORS = [
  0n,
  0x00cf_9b00_0000_ffffn,
  0x00cf_9300_0000_ffffn,
  0x000f_9b00_0000_ffffn,
  0x00af_9b00_0000_ffffn,
  0x00cf_1300_0000_ffffn,
  0x00cf_9100_0000_ffffn,
] as const;

const gates = (view: DataView, mode: Mode): void => {
  for (let vector = 0; vector < VECTORS; vector++) {
    const handler = LAYOUT.handlers + vector;
    const selector = isLong(mode) ? SELECTOR.code64 : SELECTOR.code;
    const gate = BigInt(handler) | (BigInt(selector) << 16n) | (0x8e00n << 32n);
    if (mode === 'real') view.setUint32(LAYOUT.ivt + 4 * vector, handler, true);
    else view.setBigUint64(LAYOUT.idt + (isLong(mode) ? 16 : 8) * vector, gate, true);
  }
};

/** Identity-maps RAM and one page beyond it, and from 2 MiB on a large page that no memory is behind. */
const pageTables = (view: DataView): void => {
  const table = (index: number): number => LAYOUT.pageTables + 0x1000 * index;
  const entry = (at: number, index: number, value: bigint): void => view.setBigUint64(at + 8 * index, value, true);
  entry(table(0), 0, BigInt(table(1)) | PRESENT_WRITABLE_USER);
  entry(table(1), 0, BigInt(table(2)) | PRESENT_WRITABLE_USER);
  entry(table(2), 0, BigInt(table(3)) | PRESENT_WRITABLE_USER);
  entry(table(2), 1, 0x0020_0000n | PAGE_SIZE_BIT | PRESENT_WRITABLE_USER);
  for (let page = 0; page < LAYOUT.ramBytes / 0x1000 + 1; page++)
    entry(table(3), page, BigInt(0x1000 * page) | PRESENT_WRITABLE_USER);
};

/** RAM of a machine in `mode` with `code` at its place, HLTs behind it and `data` in data and stack. */
export const ramImage = (mode: Mode, code: Uint8Array, data: Uint8Array): Uint8Array => {
  const ram = new Uint8Array(LAYOUT.ramBytes);
  const view = new DataView(ram.buffer);
  gates(view, mode);
  ram.fill(HLT, LAYOUT.handlers, LAYOUT.handlers + VECTORS);
  for (const [index, descriptor] of DESCRIPTORS.entries()) view.setBigUint64(LAYOUT.gdt + 8 * index, descriptor, true);
  if (isLong(mode)) pageTables(view);
  ram.fill(HLT, LAYOUT.code, LAYOUT.code + 0x1000);
  ram.set(code, LAYOUT.code);
  ram.set(data.subarray(0, LAYOUT.dataBytes), LAYOUT.data);
  ram.set(data.subarray(0, 0x1000), LAYOUT.stack);
  return ram;
};
