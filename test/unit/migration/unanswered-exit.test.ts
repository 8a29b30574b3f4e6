import { describe, expect, it } from 'vitest';
import { failed } from '../../../server/kernel/failure.js';
import { KVM_EXIT, KVM_GUESTDBG } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_run, kvm_run__io, kvm_run__mmio } from '../../../server/kernel/uapi/kvm-run.js';
import { kvm_guest_debug, kvm_regs } from '../../../server/kernel/uapi/x86-structs.js';
import { because } from '../../../server/migration/reason.js';
import { STOP_PATIENCE_MS } from '../../../server/migration/source.js';
import { createSevRig, type SevRig } from '../kernel/kvm/svm/sev-rig.js';
import { type CountingGuest, countingGuest, Migration } from './two-hosts.js';

const ENTRY = 0x1000;
const DATA = 0x2000;
/** Above the guest's memory. */
const DEVICE = 0x8_0000;

const hosts = (): readonly [SevRig, SevRig] => [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];

/** A guest of 16-bit code. */
const guestOf = ({ vmm }: SevRig, code: readonly number[]): CountingGuest =>
  countingGuest(vmm, vmm.createGuest(1), (address) => {
    vmm.write(address + ENTRY, Uint8Array.from(code));
    vmm.write(address + DATA, Uint8Array.of(7, 8, 9));
  });

/** `mov al, 1; out 0xe9, al; inc al; jmp` back to the `out`. */
const WRITES_PORT = [0xb0, 1, 0xe6, 0xe9, 0xfe, 0xc0, 0xeb, 0xfa];
/** `in al, 0x60; out 0xe9, al; jmp` back. */
const READS_PORT = [0xe4, 0x60, 0xe6, 0xe9, 0xeb, 0xfa];
/** `mov ax, DEVICE >> 4; mov es, ax; mov cx, 3; mov si, DATA; mov di, 0; rep movsb; out 0xe9, al; hlt`. */
const COPIES_TO_DEVICE = [
  ...[0xb8, 0x00, 0x80, 0x8e, 0xc0, 0xb9, 3, 0, 0xbe, 0x00, 0x20, 0xbf, 0, 0],
  ...[0xf3, 0xa4, 0xe6, 0xe9, 0xf4],
];

/** `mov ax, DEVICE >> 4; mov ss, ax; mov sp, 0x100; pusha; out 0xe9, al; hlt`: eight stores of one instruction. */
const PUSHES_TO_DEVICE = [0xb8, 0x00, 0x80, 0x8e, 0xd0, 0xbc, 0x00, 0x01, 0x60, 0xe6, 0xe9, 0xf4];

/** KVM_RUN: what has been told. Null: the call waits. */
const run = ({ vmm, vcpuFd, vcpu }: CountingGuest): string | readonly [number, number, number] | null => {
  const result = vmm.process.startIoctl(vcpuFd, IOCTL.KVM_RUN).result();
  if (result === undefined) return null;
  if (failed(result)) return result.errno;
  return told(vcpu);
};

/** Reason, port or address, first byte. */
const told = ({ runPages }: CountingGuest['vcpu']): readonly [number, number, number] => {
  const { bytes } = runPages.run;
  const { exit_reason } = kvm_run.decode(bytes);
  if (exit_reason === KVM_EXIT.IO) return [exit_reason, kvm_run__io.decode(bytes).port, runPages.pio.bytes[0] ?? 0];
  const { phys_addr, data } = kvm_run__mmio.decode(bytes);
  return [exit_reason, Number(phys_addr), data[0] ?? 0];
};

const rip = ({ vmm, vcpuFd }: CountingGuest): bigint => {
  const regs = new Uint8Array(kvm_regs.size);
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_GET_REGS, regs));
  return kvm_regs.decode(regs).rip;
};

describe('an exit that tells of a write, and a VMM that does not call KVM_RUN again', () => {
  it('holds nothing up: the VMM has been told all, and the guest goes on behind it on the other host', () => {
    const [here, there] = hosts();
    const guest = guestOf(here, WRITES_PORT);
    expect(run(guest)).toEqual([KVM_EXIT.IO, 0xe9, 1]);
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('sent');
    expect(told(guest.vcpu)).toEqual([KVM_EXIT.IO, 0xe9, 1]);
    expect(run(migration.arrived())).toEqual([KVM_EXIT.IO, 0xe9, 2]);
  });

  it('is completed once, also when the guest stays', () => {
    const [here, there] = hosts();
    const guest = guestOf(here, WRITES_PORT);
    run(guest);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'preparing');
    migration.source.cancel(because('OPERATOR'));
    expect(migration.run()).toBe('OPERATOR');
    expect(run(guest)).toEqual([KVM_EXIT.IO, 0xe9, 2]);
  });

  it('goes on with the next byte of a string on the other host', () => {
    const [here, there] = hosts();
    const guest = guestOf(here, COPIES_TO_DEVICE);
    expect(run(guest)).toEqual([KVM_EXIT.MMIO, DEVICE, 7]);
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('sent');
    const arrived = migration.arrived();
    expect([run(arrived), run(arrived)]).toEqual([
      [KVM_EXIT.MMIO, DEVICE + 1, 8],
      [KVM_EXIT.MMIO, DEVICE + 2, 9],
    ]);
  });

  it('waits for the VMM where the instruction has more to tell, and keeps what has not been read yet', () => {
    const [here, there] = hosts();
    const guest = guestOf(here, PUSHES_TO_DEVICE);
    const push = (store: number): number => DEVICE + 0xfe - 2 * store;
    expect(run(guest)).toMatchObject([KVM_EXIT.MMIO, push(0), expect.anything()]);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'stopping');
    for (let step = 0; step < 20; step++) migration.step();
    expect(migration.source.state.phase).toBe('stopping');
    expect(told(guest.vcpu)).toMatchObject([KVM_EXIT.MMIO, push(0), expect.anything()]);
    for (let store = 1; store < 8; store++) expect(run(guest)).toMatchObject([KVM_EXIT.MMIO, push(store), expect.anything()]);
    expect(migration.run()).toBe('sent');
    expect(run(migration.arrived())).toMatchObject([KVM_EXIT.IO, 0xe9, expect.anything()]);
  });

  it('waits for the VMM where its debugger would be told of the step', () => {
    const [here, there] = hosts();
    const guest = guestOf(here, WRITES_PORT);
    run(guest);
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.SINGLESTEP;
    guest.vmm.process.must(guest.vmm.process.ioctl(guest.vcpuFd, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control })));
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'stopping');
    for (let step = 0; step < 20; step++) migration.step();
    expect(told(guest.vcpu)).toEqual([KVM_EXIT.IO, 0xe9, 1]);
    expect(migration.source.waitsFor).toContain('vcpu 0');
    run(guest);
    expect(kvm_run.decode(guest.vcpu.runPages.run.bytes).exit_reason).toBe(KVM_EXIT.DEBUG);
    expect(migration.run()).toBe('sent');
  });
});

describe('an exit that asks for data, and a VMM that does not call KVM_RUN again', () => {
  const begin = () => {
    const [here, there] = hosts();
    const guest = guestOf(here, READS_PORT);
    expect(run(guest)).toEqual([KVM_EXIT.IO, 0x60, 0]);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'stopping');
    for (let step = 0; step < 20; step++) migration.step();
    return { guest, migration };
  };

  it('is waited for, since its answer would be lost, and the session says so', () => {
    const { guest, migration } = begin();
    expect(migration.source.state.phase).toBe('stopping');
    expect(migration.source.waitsFor).toBe(
      'the VMM: vcpu 0 has left KVM_RUN (pio-in), and its exit is completed by the next KVM_RUN',
    );
    guest.vcpu.runPages.pio.bytes[0] = 0x41;
    expect(run(guest)).toBe('EINTR');
    expect(migration.run()).toBe('sent');
    expect(migration.source.waitsFor).toBeNull();
    expect(run(migration.arrived())).toEqual([KVM_EXIT.IO, 0xe9, 0x41]);
  });

  it('ends the migration when the guest has stood still for long enough, and the guest runs on', () => {
    const { guest, migration } = begin();
    migration.source.tick(STOP_PATIENCE_MS);
    expect(migration.source.state.phase).toBe('stopping');
    migration.source.tick(2 * STOP_PATIENCE_MS);
    expect(migration.run()).toBe('VCPUS_NOT_STOPPED');
    expect(migration.source.state).toMatchObject({ detail: expect.stringContaining('vcpu 0') });
    guest.vcpu.runPages.pio.bytes[0] = 0x42;
    expect(run(guest)).toEqual([KVM_EXIT.IO, 0xe9, 0x42]);
    expect(migration.destination.state).toMatchObject({ phase: 'aborted', reason: 'VCPUS_NOT_STOPPED' });
  });

  it('is no reason to wait when the migration is cancelled', () => {
    const { guest, migration } = begin();
    migration.source.cancel(because('CANCELLED'));
    expect(migration.run()).toBe('CANCELLED');
    expect(rip(guest)).toBe(BigInt(ENTRY));
    guest.vcpu.runPages.pio.bytes[0] = 0x43;
    expect(run(guest)).toEqual([KVM_EXIT.IO, 0xe9, 0x43]);
  });
});
