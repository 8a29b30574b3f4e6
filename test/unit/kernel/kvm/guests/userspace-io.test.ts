import { describe, expect, it } from 'vitest';
import { KVM_EXIT, KVM_EXIT_IO } from '../../../../../server/kernel/uapi/constants.js';
import { CODE, Guest, pages } from '../x86/guest.js';
import { Assembler, Register } from './assembler.js';
import { longMode } from './modes.js';

const PORT = 0x80;
const BUFFER_AT = 0xa000;
const FILL = 0xaa;
const DONE_PORT = 0x90;
const EXITS_MAX = 40;

/** REP INSB with counts of 2, 3 and 8192 bytes; then a dword to DONE_PORT and a halt. */
const guestCode = (): string => {
  const a = new Assembler(64);
  for (const count of [2, 3, 8192])
    a.mov32(Register.EDI, BUFFER_AT).mov32(Register.ECX, count).mov32(Register.EDX, PORT).repInsb();
  return a.mov32(Register.EDX, DONE_PORT).mov32(Register.EAX, 0x1234_5678).outDword().hlt().encode(CODE);
};

const startGuest = (): Guest => {
  const guest = new Guest();
  longMode(guest);
  return guest.program(guestCode());
};

/** What kvm's userspace_io_test checks, of a guest and a VMM that changes RCX under it. */
describe('REP INSB and a VMM that changes the count', () => {
  it('asks for as much as the count says, in batches of 1024 bytes', () => {
    const guest = startGuest();
    const counts: number[] = [];
    while (counts.length < EXITS_MAX && guest.run().reason === KVM_EXIT.IO && guest.io.port === PORT) {
      expect(guest.io).toMatchObject({ direction: KVM_EXIT_IO.IN, size: 1 });
      counts.push(guest.io.count);
      guest.vcpu.runPages.pio.bytes.fill(FILL, 0, guest.io.count);
    }
    expect(counts).toEqual([2, 3, ...Array<number>(8).fill(1024)]);
    expect(guest.io).toMatchObject({ direction: KVM_EXIT_IO.OUT, size: 4, port: DONE_PORT });
    expect(guest.read(BUFFER_AT, 8192)).toBe(FILL.toString(16).repeat(8192));
  });

  it.each([
    { shown: 2, changed: 1n },
    { shown: 3, changed: 8192n },
  ])('survives RCX = $changed where it was $shown', ({ shown, changed }) => {
    const guest = startGuest();
    for (let left = EXITS_MAX; left > 0 && guest.run().reason === KVM_EXIT.IO && guest.io.port === PORT; left--) {
      guest.vcpu.runPages.pio.bytes.fill(FILL, 0, guest.io.count);
      if (guest.regs.rcx === BigInt(shown)) guest.setRegs({ rcx: changed });
    }
    expect(guest.io.port).toBe(DONE_PORT);
    expect(guest.read(BUFFER_AT, pages(1))).toBe(FILL.toString(16).repeat(pages(1)));
  });
});
