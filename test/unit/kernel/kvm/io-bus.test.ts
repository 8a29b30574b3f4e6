import { describe, expect, it } from 'vitest';
import type { Failure } from '../../../../server/kernel/failure.js';
import { KmemOwner } from '../../../../server/kernel/kmem.js';
import { IoBus, type IoDevice } from '../../../../server/kernel/kvm/io-bus.js';
import { Srcu } from '../../../../server/kernel/kvm/srcu.js';
import type { Vcpu } from '../../../../server/kernel/kvm/vcpu.js';
import { createTestHost } from './test-host.js';

const newBus = (kmem = new KmemOwner('test')): { bus: IoBus; vcpu: Vcpu } => {
  const { vcpu } = createTestHost().withVcpu();
  return { bus: new IoBus('test', kmem, new Srcu(() => {})), vcpu };
};

/** A device that takes writes of the values given (all, if none are given) and notes them. */
const recorder = (address: number, length: number, ...only: number[]): IoDevice & { readonly seen: number[] } => {
  const seen: number[] = [];
  return {
    name: 'recorder',
    address,
    length,
    seen,
    write: (_vcpu, _at, bytes) => {
      const [value = -1] = bytes;
      if (only.length > 0 && !only.includes(value)) return false;
      seen.push(value);
      return true;
    },
  };
};

const write = (bus: IoBus, vcpu: Vcpu, address: number, ...bytes: number[]) => bus.write(vcpu, address, Uint8Array.from(bytes));

describe('I/O bus', () => {
  it("comes to one of several overlapping ranges by the steps of the kernel's search", () => {
    // As a real kernel does with an ioeventfd of 2 bytes that is registered after a coalesced zone of 8 around it.
    const { bus, vcpu } = newBus();
    const [beside, zone, again, exact] = [recorder(0xf8004, 1), recorder(0xf8000, 8), recorder(0xf8000, 8), recorder(0xf8000, 2)];
    for (const device of [beside, zone, again, exact]) bus.register(device);
    expect(bus.list).toEqual([exact, beside, zone, again]);
    write(bus, vcpu, 0xf8000, 0x22, 0x11);
    expect([exact.seen, zone.seen, again.seen]).toEqual([[], [0x22], []]);
  });

  it("does not come to a range that the kernel's search steps over", () => {
    // A real kernel misses the zone of 8: it looks at the ioeventfd beyond the access, and then only at what is before that.
    const { bus, vcpu } = newBus();
    const [exact, beside, zone] = [recorder(0xf8000, 2), recorder(0xf8004, 1), recorder(0xf8000, 8)];
    for (const device of [exact, beside, zone]) bus.register(device);
    expect(bus.list).toEqual([exact, beside, zone]);
    expect(write(bus, vcpu, 0xf8000, 1, 2, 3, 4)).toBe('unhandled');
  });

  it('refuses the 1001st device, but not an ioeventfd among fewer of them', () => {
    const { bus } = newBus();
    const added: (Failure | null)[] = [];
    for (let index = 0; index < 1001; index++) added.push(bus.register(recorder(index * 8, 8)));
    expect(added.slice(0, 1000).every((result) => result === null)).toBe(true);
    expect(added[1000]?.errno).toBe('ENOSPC');
    expect(bus.register({ ...recorder(1, 1), ioeventfd: true })?.errno).toBe('ENOSPC');
  });

  it('does not count ioeventfds towards the limit', () => {
    const { bus } = newBus();
    for (let index = 0; index < 1100; index++) expect(bus.register({ ...recorder(index, 1), ioeventfd: true })).toBeNull();
    expect(bus.register(recorder(5000, 4))).toBeNull();
  });

  it('gives an access only to a device that holds all of it', () => {
    const { bus, vcpu } = newBus();
    const device = recorder(0x100, 4);
    bus.register(device);
    expect(write(bus, vcpu, 0xff, 1, 2)).toBe('unhandled');
    expect(write(bus, vcpu, 0x102, 1, 2, 3)).toBe('unhandled');
    expect(write(bus, vcpu, 0x102, 7, 2)).toBe('handled');
    expect(device.seen).toEqual([7]);
  });

  it('matches an access of any length at exactly the address of a device of length 0', () => {
    const { bus, vcpu } = newBus();
    const device = recorder(0x100, 0);
    bus.register(device);
    expect(write(bus, vcpu, 0x101, 1)).toBe('unhandled');
    expect(write(bus, vcpu, 0x100, 1, 2, 3, 4, 5, 6, 7, 8)).toBe('handled');
  });

  it('asks devices at one address in turn until one takes the write', () => {
    const { bus, vcpu } = newBus();
    const one = recorder(0x100, 1, 1);
    const two = recorder(0x100, 1, 2);
    bus.register(one);
    bus.register(two);
    expect(write(bus, vcpu, 0x100, 2)).toBe('handled');
    expect(write(bus, vcpu, 0x100, 3)).toBe('unhandled');
    expect([one.seen, two.seen]).toEqual([[], [2]]);
  });

  it('finds devices whatever the order in which they came', () => {
    const { bus, vcpu } = newBus();
    const devices = [0x300, 0x100, 0x200, 0x10].map((address) => recorder(address, 4));
    for (const device of devices) bus.register(device);
    for (const { address } of devices) expect(write(bus, vcpu, address, 1)).toBe('handled');
    expect(devices.every(({ seen }) => seen.length === 1)).toBe(true);
  });

  it('destroys its devices once and is charged for its table until then', () => {
    const kmem = new KmemOwner('test');
    const { bus } = newBus(kmem);
    let destroyed = 0;
    const empty = kmem.chargedBytes;
    for (let index = 0; index < 10; index++) bus.register({ ...recorder(index, 1), destructor: () => destroyed++ });
    expect(kmem.chargedBytes).toBeGreaterThan(empty);
    bus.destroy();
    bus.destroy();
    expect(destroyed).toBe(10);
    expect(kmem.chargedBytes).toBe(0);
    expect(bus.register(recorder(0, 1))?.errno).toBe('ENOMEM');
  });
});
