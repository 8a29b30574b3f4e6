import { Register } from 'iced-x86';
import { Assembler, type Bitness } from './assembler.js';
import { GPA, HANDLER_BYTES, LAPIC, NVME, PIC, QUEUES, type Queue, SERIAL, SERIAL_PORT } from './layout.js';

/**
 * The guest's driver, the same source for 32-bit and 64-bit code. It touches devices by two instructions only,
 * `out dx, al` and `mov [edi], eax`, which is what makes the #VC handler of an SEV-ES guest short.
 */

/** A stretch of guest memory with what is in it. */
export interface Segment {
  readonly gpa: number;
  readonly bytes: Uint8Array;
}

/** out port, byte; changes EAX and EDX */
const out = (a: Assembler, port: number, byte: number): Assembler =>
  a.movImm(Register.EDX, port).movImm8(Register.AL, byte).outDxAl();

/** [address] = EAX, at a device; changes EDI */
const mmioStoreEax = (a: Assembler, address: number): Assembler =>
  a.movImm(Register.EDI, address).store32(pointer(a.bitness), 0, Register.EAX);

const mmioStore = (a: Assembler, address: number, value: number): Assembler =>
  mmioStoreEax(a.movImm(Register.EAX, value), address);

const pointer = (bitness: Bitness): Register => (bitness === 32 ? Register.EDI : Register.RDI);

const enableLocalApic = (a: Assembler): Assembler => mmioStore(a, LAPIC.SPURIOUS, LAPIC.ENABLED);

/** ICW1 to ICW4, and every pin masked but the ones in use. The local APIC lets the PIC's interrupts through after RESET. */
const initializePic = (a: Assembler): void => {
  const used = QUEUES.flatMap(({ interrupt }) => (interrupt.kind === 'pic' ? [interrupt.pin] : []));
  const mask = used.reduce((bits, pin) => bits & ~(1 << pin), 0xff);
  out(a, PIC.MASTER, 0x11);
  out(a, PIC.MASTER_DATA, PIC.BASE_VECTOR);
  out(a, PIC.MASTER_DATA, 0x04);
  out(a, PIC.MASTER_DATA, 0x01);
  out(a, PIC.MASTER_DATA, mask);
  out(a, PIC.SLAVE_DATA, 0xff);
};

/** Submits command number EAX: the tail of a submission queue that never is full. */
const submit = (a: Assembler, { name, doorbell }: Queue): void => {
  mmioStoreEax(a, doorbell);
  if (name === 'admin') a.movImm(Register.EDX, NVME.NOTIFY_PORT).outDxAl();
};

/** An idle processor: all that follows happens in interrupt handlers. */
const idle = (a: Assembler): void => {
  a.sti();
  const again = a.here();
  a.hlt().jmp(again);
};

/** What a processor does when it starts: its controllers, one command in each queue of its own, and it says that it is ready. */
const entry = (bitness: Bitness, vcpu: 0 | 1, prologue: (a: Assembler) => void): Assembler => {
  const a = new Assembler(bitness);
  prologue(a);
  enableLocalApic(a);
  if (vcpu === 0) initializePic(a);
  for (const queue of QUEUES.filter((candidate) => candidate.vcpu === vcpu)) {
    a.movImm(Register.EAX, 1);
    submit(a, queue);
  }
  out(a, SERIAL_PORT, SERIAL.READY.charCodeAt(0));
  idle(a);
  return a;
};

const SAVED: readonly (readonly [Register, Register])[] = [
  [Register.EAX, Register.RAX],
  [Register.EDX, Register.RDX],
  [Register.EDI, Register.RDI],
];

/** A completion: count it, end the interrupt, submit the next command, and report the count. */
const completionHandler = (bitness: Bitness, index: number, queue: Queue): Assembler => {
  const a = new Assembler(bitness);
  const count = GPA.COUNTS + index * 4;
  for (const [r32, r64] of SAVED) a.push(r32, r64);
  a.movImm(Register.EDI, count).inc32(pointer(bitness));
  if (queue.interrupt.kind === 'pic') out(a, PIC.MASTER, PIC.EOI);
  else mmioStore(a, LAPIC.EOI, 0);
  a.movImm(Register.EDI, count).load32(Register.EAX, pointer(bitness), 0).addImm(Register.EAX, 1);
  submit(a, queue);
  out(a, SERIAL_PORT, SERIAL.letter(index).charCodeAt(0));
  a.movImm(Register.EDI, count).load32(Register.EAX, pointer(bitness), 0).addImm(Register.EAX, '0'.charCodeAt(0));
  a.movImm(Register.EDX, SERIAL_PORT).outDxAl();
  for (const [r32, r64] of SAVED.toReversed()) a.pop(r32, r64);
  return a.iret();
};

export const handlerAddress = (queue: number): number => GPA.HANDLERS + queue * HANDLER_BYTES;

/** The driver's code. `prologue` is put before the first instruction of each processor. */
export const driverSegments = (
  bitness: Bitness,
  prologue: (a: Assembler, vcpu: 0 | 1) => void = () => {},
): readonly Segment[] => [
  { gpa: GPA.ENTRY, bytes: entry(bitness, 0, (a) => prologue(a, 0)).encode(GPA.ENTRY) },
  { gpa: GPA.AP_ENTRY, bytes: entry(bitness, 1, (a) => prologue(a, 1)).encode(GPA.AP_ENTRY) },
  ...QUEUES.map((queue, index) => ({
    gpa: handlerAddress(index),
    bytes: completionHandler(bitness, index, queue).encode(handlerAddress(index)),
  })),
];
