import { describe, expect, it } from 'vitest';
import { because } from '../../../server/migration/reason.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { type CountingGuest, completeIo, Migration, plainGuest, runOnce, sevEsGuest, sevGuest } from './two-hosts.js';

const KINDS = { plain: plainGuest, SEV: sevGuest, 'SEV-ES': sevEsGuest } as const;
const NAMES = ['plain', 'SEV', 'SEV-ES'] as const;
const SERIAL_EXIT = 2;

const hosts = () => [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })] as const;

/** Lets a guest count on. */
const count = (guest: CountingGuest, serial: number[], times: number): void => {
  for (let run = 0; run < times; run++) expect(runOnce(guest, serial)).toBe(SERIAL_EXIT);
};

const upTo = (count: number): number[] => Array.from({ length: count }, (_, index) => (index + 1) & 0xff);

describe.each(NAMES)('a %s guest that counts while it migrates', (name) => {
  it('goes on on the other host, with no gap and no repetition', () => {
    const [here, there] = hosts();
    const guest = KINDS[name](here);
    const serial: number[] = [];
    count(guest, serial, 20);
    const migration = new Migration(guest, there.vmm);
    const result = migration.run(() => {
      if (!migration.over && migration.source.state.phase !== 'draining') runOnce(guest, serial);
    });
    expect(result).toBe('sent');
    expect(serial.length).toBeGreaterThan(25);
    count(migration.arrived(), serial, 20);
    expect(serial).toEqual(upTo(serial.length));
  });

  it('is dead where it was, and says where it has gone', () => {
    const [here, there] = hosts();
    const guest = KINDS[name](here);
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('sent');
    expect(guest.vm.life).toMatchObject({ kind: 'moved', cause: { kind: 'sent', session: 'session' } });
    expect(runOnce(guest, [])).toBe('EIO');
  });

  it('runs nowhere else before it is committed, and its KVM_RUN goes on afterwards', () => {
    const [here, there] = hosts();
    const guest = KINDS[name](here);
    const serial: number[] = [];
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.destination.state.phase === 'prepared');
    const before = migration.arrived();
    expect(runOnce(before, serial)).toBeNull();
    expect(migration.run()).toBe('sent');
    expect(serial).toEqual([]);
  });

  it('runs on where it is when the migration is cancelled, before Commit', () => {
    for (let steps = 0; steps < 40; steps += 4) {
      const [here, there] = hosts();
      const guest = KINDS[name](here);
      const serial: number[] = [];
      count(guest, serial, 3);
      completeIo(guest);
      const migration = new Migration(guest, there.vmm);
      for (let step = 0; step < steps; step++) migration.step();
      if (migration.source.standing !== 'sending') {
        expect(migration.run()).toBe('sent');
        return;
      }
      migration.source.cancel(because('OPERATOR'));
      expect(migration.run()).toBe('OPERATOR');
      count(guest, serial, 3);
      expect(serial).toEqual(upTo(6));
      expect(there.vmm.process.kernel.vms.size).toBe(0);
      expect(there.vmm.process.kernel.amd?.processor.guests()).toEqual([]);
    }
  });

  it('comes back from the fence when the destination gives up after Commit has left', () => {
    const [here, there] = hosts();
    const guest = KINDS[name](here);
    const serial: number[] = [];
    count(guest, serial, 3);
    completeIo(guest);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'committing');
    migration.destination.abort(because('OPERATOR'));
    expect(migration.run()).toBe('OPERATOR');
    count(guest, serial, 3);
    expect(serial).toEqual(upTo(6));
  });

  it('leaves nothing behind on the source once that is closed, over ten hops in a ring', () => {
    const ring = ['a', 'b', 'c'].map((seed) => createSevRig({ seed }));
    const [first] = ring;
    if (first === undefined) throw new Error('no host');
    let guest = KINDS[name](first);
    const serial: number[] = [];
    for (let hop = 1; hop <= 10; hop++) {
      count(guest, serial, 2);
      completeIo(guest);
      const next = ring[hop % 3];
      if (next === undefined) throw new Error('no host');
      const migration = new Migration(guest, next.vmm);
      expect(migration.run()).toBe('sent');
      const { vmm, vcpuFd, vmFd, vm } = guest;
      guest = migration.arrived();
      vmm.process.close(vcpuFd);
      vmm.process.close(vmFd);
      expect(vmm.process.kernel.vms.has(vm.id)).toBe(false);
      expect(vm.kmem.reachableBytes).toBe(0);
      expect(vmm.process.kernel.amd?.processor.guests()).toEqual([]);
    }
    count(guest, serial, 2);
    expect(serial).toEqual(upTo(22));
  });
});

describe('a SEV guest whose platform or owner forbids the way', () => {
  const NOSEND = 1 << 3;
  const DOMAIN = 1 << 4;

  it('is not sent with NOSEND, and runs on', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here, NOSEND);
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('FIRMWARE_POLICY_FAILURE');
    expect(migration.source.statistics(0).pagesSent).toBe(0);
    expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
  });

  it('is not sent to the platform of another owner', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here, DOMAIN);
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('FIRMWARE_POLICY_FAILURE');
    expect(migration.source.statistics(0).pagesSent).toBe(0);
    expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
  });

  it('keeps its policy on the destination', () => {
    const [here, there] = hosts();
    const NODBG = 1;
    const migration = new Migration(sevGuest(here, NODBG), there.vmm);
    expect(migration.run()).toBe('sent');
    expect(there.vmm.process.kernel.amd?.processor.guests()).toMatchObject([{ policy: NODBG, state: 'running' }]);
    const RUNNING = 3;
    expect(there.vmm.status({ fd: migration.arrived().vmFd })).toMatchObject({ result: 0, policy: NODBG, state: RUNNING });
  });
});

describe('packets of the firmware on a wire that somebody else holds', () => {
  it('a changed bit is refused by the firmware, and the source runs on', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here);
    const migration = new Migration(guest, there.vmm, (frame) => {
      if (frame.kind !== 'data' || frame.message.kind !== 'pages') return frame;
      const { batch } = frame.message;
      const data = batch.data.slice();
      data[0] = (data[0] ?? 0) ^ 1;
      return { ...frame, message: { ...frame.message, batch: { ...batch, data } } };
    });
    expect(migration.run()).toBe('FIRMWARE_BAD_MEASUREMENT');
    expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
  });

  it('swapped pages are not, since a packet says nothing of its address: the daemons have to', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here);
    const migration = new Migration(guest, there.vmm, (frame) => {
      if (frame.kind !== 'data' || frame.message.kind !== 'pages') return frame;
      const { batch } = frame.message;
      return { ...frame, message: { ...frame.message, batch: { ...batch, gfns: [...batch.gfns].reverse() } } };
    });
    expect(migration.run()).toBe('sent');
    const serial: number[] = [];
    for (let run = 0; run < 3; run++) runOnce(migration.arrived(), serial);
    expect(serial).not.toEqual([1, 2, 3]);
  });
});

describe('a destination that restarts when it may have committed', () => {
  const answered = (standing: 'committed' | 'unknown') => {
    const [here, there] = hosts();
    const guest = plainGuest(here);
    const serial: number[] = [];
    count(guest, serial, 3);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'committing');
    // Its power goes, and with it the copy.
    migration.destination.abort(because('POWER'));
    there.vmm.process.kernel.scheduler.run();
    migration.source.tick(0);
    const answers = 2;
    migration.source.receive(
      { session: 'session', boot: 'next', kind: 'standing', answers, standing, ledger: 'memory', received: 0 },
      0,
    );
    here.vmm.process.kernel.scheduler.run();
    return { guest, serial, source: migration.source };
  };

  it('has lost the guest with its power where it had, and the source says so', () => {
    const { guest, source } = answered('committed');
    expect(source.state).toEqual({ phase: 'sent', lost: true });
    expect(runOnce(guest, [])).toBe('EIO');
  });

  it('never had it where its ledger does not know: it runs on at the source', () => {
    const { guest, serial, source } = answered('unknown');
    expect(source.state).toMatchObject({ phase: 'stayed', reason: 'DESTINATION_RESTARTED' });
    count(guest, serial, 3);
    expect(serial).toEqual(upTo(6));
  });
});
