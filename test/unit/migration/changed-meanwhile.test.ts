import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { failed } from '../../../server/kernel/failure.js';
import { dup } from '../../../server/kernel/syscalls/descriptors.js';
import { createSevRig, type Vmm } from '../kernel/kvm/svm/sev-rig.js';
import { type CountingGuest, Migration, plainGuest, runOnce, sevGuest } from './two-hosts.js';

const KINDS = { plain: plainGuest, SEV: sevGuest } as const;
const NAMES = ['plain', 'SEV'] as const;
/** Pages that nothing but the test touches, and that are not private. */
const BUFFER = 0x8000;
const RAM = 64 * PAGE_SIZE;

const twoHosts = () => [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })] as const;

const filled = (value: number): Uint8Array => new Uint8Array(PAGE_SIZE).fill(value);

/** The first and only slot of the guest, made anew; 0 bytes: it is taken away. */
const setSlot = ({ vmm, vmFd, address }: CountingGuest, bytes: number): void => vmm.addSlot({ fd: vmFd }, 0, 0, address, bytes);

/** A migration whose buffer has arrived, and holds ones. */
const halfway = (name: (typeof NAMES)[number] = 'plain') => {
  const [here, there] = twoHosts();
  const guest = KINDS[name](here);
  for (let page = 0; page < 16; page++) here.vmm.write(guest.address + BUFFER + page * PAGE_SIZE, filled(1));
  const migration = new Migration(guest, there.vmm, undefined, { downtimeMs: 0 });
  migration.until(() => migration.destination.pagesReceived > 8);
  return { here, there, guest, migration };
};

const arrivedPage = (there: Vmm, migration: Migration, page: number): Uint8Array =>
  there.read(migration.arrived().address + BUFFER + page * PAGE_SIZE, PAGE_SIZE);

describe('what the VMM of the source does while its guest is copied', () => {
  it('takes its slot away: the guest stays, and is told apart from a defect', () => {
    const { guest, migration } = halfway();
    setSlot(guest, 0);
    expect(migration.run()).toBe('GUEST_CHANGED_MEANWHILE');
    expect(migration.source.state).toMatchObject({ detail: expect.stringContaining('what: slots') });
    setSlot(guest, RAM);
    expect(runOnce(guest, [])).toBe(2);
  });

  it('takes its slot away, writes to the memory behind it, and makes it again: that arrives', () => {
    const { guest, migration, here, there } = halfway();
    setSlot(guest, 0);
    here.vmm.write(guest.address + BUFFER, filled(7));
    setSlot(guest, RAM);
    expect(migration.run()).toBe('sent');
    expect(arrivedPage(there.vmm, migration, 0)).toEqual(filled(7));
  });

  it('gives pages up that have been sent, as a balloon does, or maps others there: what was in them is gone on both hosts', () => {
    const { guest, migration, here, there } = halfway();
    const at = (page: number): number => guest.address + BUFFER + page * PAGE_SIZE;
    expect(here.vmm.mm.dontNeed(at(0), PAGE_SIZE)).toBeNull();
    const protection = { read: true, write: true, execute: false };
    const other = { length: PAGE_SIZE, protection, shared: false, object: null, offset: 0, fixedAddress: at(1) };
    expect(failed(here.vmm.mm.mmap(other))).toBe(false);
    here.vmm.write(at(1) + 16, Uint8Array.of(9));
    expect(migration.run()).toBe('sent');
    expect(arrivedPage(there.vmm, migration, 0)).toEqual(filled(0));
    expect(arrivedPage(there.vmm, migration, 1).subarray(0, 32)).toEqual(new Uint8Array(32).fill(9, 16, 17));
    expect(arrivedPage(there.vmm, migration, 2)).toEqual(filled(1));
  });

  it('writes into the memory of the stopped guest, as its devices do, while the last pages are under way: that arrives', () => {
    const { guest, migration, here, there } = halfway();
    migration.until(() => migration.source.state.phase === 'draining');
    here.vmm.write(guest.address + BUFFER, filled(5));
    migration.step();
    here.vmm.write(guest.address + BUFFER + 3 * PAGE_SIZE, filled(6));
    expect(migration.run()).toBe('sent');
    expect(arrivedPage(there.vmm, migration, 0)).toEqual(filled(5));
    expect(arrivedPage(there.vmm, migration, 3)).toEqual(filled(6));
  });

  it('writes without an end into the memory of the stopped guest: it is not waited for', () => {
    const { guest, migration, here } = halfway();
    let value = 0;
    const ended = migration.run(() => {
      if (migration.source.state.phase === 'draining') here.vmm.write(guest.address + BUFFER, filled(++value & 0xff));
    });
    expect(ended).toBe('sent');
    expect(value).toBeGreaterThan(8);
  });
});

describe.each(NAMES)('what the VMM of the destination does with a %s guest while it comes', (name) => {
  /** The guest runs where it was, and nothing of it is at the destination. */
  const stays = ({ guest, migration, there }: ReturnType<typeof halfway>, reason: string): void => {
    expect(migration.run()).toBe(reason);
    expect(migration.destination.state).toMatchObject({ phase: 'aborted', reason });
    expect(runOnce(guest, [])).toBe(2);
    there.host.kernel.scheduler.run();
    expect([there.host.kernel.vms.size, there.host.kernel.amd?.processor.guests()]).toEqual([0, []]);
  };

  const close = ({ there }: ReturnType<typeof halfway>, ...fds: readonly number[]): void => {
    const { process } = there.vmm;
    for (const fd of fds) process.call((current) => process.process.files.close(current, fd));
  };

  it.each(['receiving', 'prepared'] as const)('closes its VM and vCPU while it is %s: the guest stays', (phase) => {
    const rig = halfway(name);
    rig.migration.until(() => rig.migration.destination.state.phase === phase);
    const { vmFd = -1, vcpuFds = [] } = rig.migration.received ?? {};
    close(rig, vmFd, ...vcpuFds);
    stays(rig, 'RECEIVED_VM_CLOSED');
  });

  it('closes a vCPU, which nobody can run any more: the guest stays', () => {
    const rig = halfway(name);
    close(rig, ...(rig.migration.received?.vcpuFds ?? []));
    stays(rig, 'RECEIVED_VM_CLOSED');
  });

  it('keeps the VM by another descriptor: the guest comes', () => {
    const rig = halfway(name);
    const { vmFd = -1 } = rig.migration.received ?? {};
    rig.there.vmm.process.must(rig.there.vmm.process.call((current) => dup(current, vmFd)));
    close(rig, vmFd);
    expect(rig.migration.run()).toBe('sent');
  });

  it('takes its slot away when all of it has come: the guest stays', () => {
    const rig = halfway(name);
    rig.migration.until(() => rig.migration.destination.state.phase === 'prepared');
    const { address, vmFd } = rig.migration.arrived();
    rig.there.vmm.addSlot({ fd: vmFd }, 0, 0, address, 0);
    stays(rig, 'RECEIVED_VM_CHANGED');
  });
});
