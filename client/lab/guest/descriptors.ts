import type { Bitness } from './assembler.js';
import { handlerAddress, type Segment } from './driver.js';
import { GPA, QUEUES, SELECTOR } from './layout.js';

/** Code and data descriptors: base 0, limit 4 GiB (APM volume 2, 4.7 and 4.8). */
const CODE_32 = 0x00cf_9b00_0000_ffffn;
const CODE_64 = 0x00af_9b00_0000_ffffn;
const DATA = 0x00cf_9300_0000_ffffn;
/** An interrupt gate that is present, for ring 0. */
const INTERRUPT_GATE = 0x8e;

const gdt = (bitness: Bitness): Segment => {
  const bytes = new Uint8Array(SELECTOR.DATA + 8);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(SELECTOR.CODE, bitness === 32 ? CODE_32 : CODE_64, true);
  view.setBigUint64(SELECTOR.DATA, DATA, true);
  return { gpa: GPA.GDT, bytes };
};

/** A handler of an exception, beside those of the driver's interrupts. */
export interface ExceptionHandler {
  readonly vector: number;
  readonly address: number;
}

const idt = (bitness: Bitness, exceptions: readonly ExceptionHandler[]): Segment => {
  const gateBytes = bitness === 32 ? 8 : 16;
  const bytes = new Uint8Array(256 * gateBytes);
  const view = new DataView(bytes.buffer);
  const gate = (vector: number, address: number): void => {
    const offset = vector * gateBytes;
    view.setUint16(offset, address & 0xffff, true);
    view.setUint16(offset + 2, SELECTOR.CODE, true);
    view.setUint8(offset + 5, INTERRUPT_GATE);
    view.setUint16(offset + 6, address >>> 16, true);
  };
  for (const [index, { interrupt }] of QUEUES.entries()) gate(interrupt.vector, handlerAddress(index));
  for (const { vector, address } of exceptions) gate(vector, address);
  return { gpa: GPA.IDT, bytes };
};

/** GDT and IDT with the driver's handlers. */
export const descriptorTables = (bitness: Bitness, exceptions: readonly ExceptionHandler[] = []): readonly Segment[] => [
  gdt(bitness),
  idt(bitness, exceptions),
];

/** Limits of the tables, for GDTR and IDTR. */
export const tableLimits = (bitness: Bitness) => ({
  gdt: { base: BigInt(GPA.GDT), limit: SELECTOR.DATA + 7 },
  idt: { base: BigInt(GPA.IDT), limit: 256 * (bitness === 32 ? 8 : 16) - 1 },
});
