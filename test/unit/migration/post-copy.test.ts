import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { KVM_EXIT } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { whyNotSent } from '../../../server/migration/describe.js';
import type { CopyLimits } from '../../../server/migration/limits.js';
import { whyNoPostCopy } from '../../../server/migration/local-source.js';
import { because } from '../../../server/migration/reason.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { COUNTER, type CountingGuest, completeIo, Migration, plainGuest, runOnce, sevGuest } from './two-hosts.js';

const SERIAL_EXIT = 2;
const BALLAST = 0x8000;
const SIGUSR1 = 10;
const AT_ONCE = { postCopy: 'at-once', batchPages: 1 } as const;

const hosts = () => [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })] as const;

const upTo = (count: number): number[] => Array.from({ length: count }, (_, index) => (index + 1) & 0xff);

/** A guest with some memory that it never looks at, counted so far to three. */
const begin = (limits: Partial<CopyLimits> = AT_ONCE) => {
  const [here, there] = hosts();
  const guest = plainGuest(here);
  for (let page = 0; page < 16; page++) guest.vmm.write(guest.address + BALLAST + page * PAGE_SIZE, Uint8Array.of(page + 1));
  const serial: number[] = [];
  for (let run = 0; run < 3; run++) runOnce(guest, serial);
  completeIo(guest);
  return { here, there, guest, serial, migration: new Migration(guest, there.vmm, (frame) => frame, limits) };
};

/** Both sides know that the guest has gone; none of its memory has. */
const torn = () => {
  const world = begin();
  const { migration } = world;
  migration.until(() => migration.source.state.phase === 'serving');
  return { ...world, arrived: migration.arrived() };
};

/** KVM_RUN of a guest whose memory comes when it wants it. */
const count = (migration: Migration, guest: CountingGuest, serial: number[]): void => {
  const run = guest.vmm.process.startIoctl(guest.vcpuFd, IOCTL.KVM_RUN);
  migration.until(() => run.result() !== undefined);
  expect(run.result()).toBe(0);
  serial.push(guest.vcpu.runPages.pio.bytes[0] ?? -1);
};

const framesUsed = ({ vmm }: { vmm: CountingGuest['vmm'] }): number => vmm.process.kernel.dram.used;

describe('a plain guest that is handed over before its memory', () => {
  it('goes on on the other host with no gap and no repetition, and its memory follows as it touches it', () => {
    const { guest, serial, migration, arrived } = torn();
    const { mm } = arrived.vm;
    expect(mm.hasMissing(arrived.address, arrived.address + 64 * PAGE_SIZE)).toBe(true);
    for (let run = 0; run < 5; run++) count(migration, arrived, serial);
    expect(serial).toEqual(upTo(8));
    expect(migration.source.statistics(0).faultsServed).toBeGreaterThan(0);
    expect(migration.run()).toBe('sent');
    expect(migration.destination.state).toEqual({ phase: 'committed', lost: 0 });
    for (let page = 0; page < 16; page++)
      expect(mm.read(arrived.address + BALLAST + page * PAGE_SIZE, 1)).toEqual(Uint8Array.of(page + 1));
    count(migration, arrived, serial);
    expect(serial).toEqual(upTo(9));
    expect(runOnce(guest, [])).toBe('EIO');
  });

  it('keeps what a device of its VMM has written before the page has come', () => {
    const { migration, arrived } = torn();
    const { mm } = arrived.vm;
    expect(mm.write(arrived.address + BALLAST + 1, Uint8Array.of(0x77))).toBeNull();
    expect(migration.run()).toBe('sent');
    expect(mm.read(arrived.address + BALLAST, 3)).toEqual(Uint8Array.of(1, 0x77, 0));
  });

  it('gets what its memory was when it was stopped, whatever the zombie does with its memory', () => {
    const { guest, migration, arrived } = torn();
    guest.vmm.write(guest.address + BALLAST, Uint8Array.of(0xee));
    expect(migration.run()).toBe('sent');
    expect(arrived.vm.mm.read(arrived.address + BALLAST, 1)).toEqual(Uint8Array.of(1));
  });

  it('gets its memory also when the process that it came from has ended, which keeps nothing longer than that', () => {
    const { here, guest, serial, migration, arrived } = torn();
    const before = createSevRig({ seed: 'here' }).vmm;
    here.host.kernel.exit(guest.vmm.process.process);
    here.host.kernel.scheduler.run();
    expect(here.host.kernel.vms.size).toBe(0);
    expect(framesUsed(guest)).toBeGreaterThan(framesUsed({ vmm: before }));
    count(migration, arrived, serial);
    expect(migration.run()).toBe('sent');
    expect(serial).toEqual(upTo(4));
    expect(arrived.vm.mm.read(arrived.address + BALLAST, 1)).toEqual(Uint8Array.of(1));
  });

  it('fails where it touches what its source has taken with it', () => {
    const { serial, migration, arrived } = torn();
    const run = arrived.vmm.process.startIoctl(arrived.vcpuFd, IOCTL.KVM_RUN);
    expect(run.result()).toBeUndefined();
    const ask = {
      session: 'session',
      boot: 'another',
      ledger: 'here',
      kind: 'standing',
      standing: 'unknown',
      received: 0,
    } as const;
    migration.destination.tick();
    for (let answers = 1; answers < 20; answers++) migration.destination.receive({ ...ask, answers });
    arrived.vmm.process.kernel.scheduler.run();
    expect(run.result()).toMatchObject({ errno: 'EFAULT', reason: 'PAGE_LOST' });
    expect(arrived.vcpu.arch.run.exitReason).toBe(KVM_EXIT.MEMORY_FAULT);
    expect(migration.destination.state).toMatchObject({ phase: 'committed' });
    expect(migration.destination.pagesMissing).toBeGreaterThan(0);
    expect(serial).toEqual(upTo(3));
    expect(migration.run()).toBe('sent');
  });

  it('does not come back, whatever its destination says of it', () => {
    const { guest, migration } = torn();
    // It has said `accept`, `prepared` and `committed` so far.
    const head = { session: 'session', boot: 'there', kind: 'data' } as const;
    migration.source.receive({ ...head, sequence: 4, message: { kind: 'aborted', ...because('LIE') } }, 0);
    expect(migration.source.state.phase).toBe('serving');
    expect(runOnce(guest, [])).toBe('EIO');
    migration.source.receive({ ...head, sequence: 5, message: { kind: 'complete' } }, 0);
    expect(migration.source.state.phase).toBe('sent');
  });

  it('cannot be sent on before all of it is there', () => {
    const { migration, arrived } = torn();
    expect(whyNotSent(arrived.vm)).toMatchObject({ errno: 'EBUSY', reason: 'PAGES_STILL_OWED' });
    expect(migration.run()).toBe('sent');
    expect(whyNotSent(arrived.vm)).toBeNull();
  });

  it('lets a signal end a KVM_RUN that waits for memory', () => {
    const { serial, migration, arrived } = torn();
    const run = arrived.vmm.process.startIoctl(arrived.vcpuFd, IOCTL.KVM_RUN);
    arrived.vmm.process.process.signal(SIGUSR1);
    arrived.vmm.process.kernel.scheduler.run();
    expect(run.result()).toMatchObject({ errno: 'EINTR' });
    count(migration, arrived, serial);
    expect(serial).toEqual(upTo(4));
    expect(migration.run()).toBe('sent');
  });

  it('needs nothing any more when its VMM is gone: the source learns it, and frees what it holds', () => {
    const { there, guest, migration, arrived } = torn();
    there.host.kernel.exit(arrived.vmm.process.process);
    there.host.kernel.scheduler.run();
    expect(migration.run()).toBe('sent');
    guest.vmm.process.closeAll();
    guest.vm.mm.exit();
    expect(framesUsed(guest)).toBe(framesUsed(createSevRig({ seed: 'here' })));
  });

  it('is not torn apart when it stays: nothing is missing there, and nothing held here', () => {
    const { guest, serial, migration } = begin();
    migration.until(() => migration.destination.state.phase === 'prepared');
    migration.source.cancel(because('OPERATOR'));
    expect(migration.run()).toBe('OPERATOR');
    runOnce(guest, serial);
    expect(serial).toEqual(upTo(4));
    expect(guest.vm.mm.read(guest.address + COUNTER, 1)).toEqual(Uint8Array.of(4));
  });

  it('drops what has come of a page that the guest has written since', () => {
    const { guest, serial, migration } = begin({ postCopy: 'on-request', downtimeMs: -1, rounds: 1000 });
    // All of it has been sent once.
    migration.until(() => migration.destination.pagesReceived >= 18);
    for (let run = 0; run < 3; run++) runOnce(guest, serial);
    completeIo(guest);
    expect(migration.source.startPostCopy()).toBeNull();
    migration.until(() => migration.destination.state.phase === 'fetching' || migration.over);
    const arrived = migration.arrived();
    count(migration, arrived, serial);
    expect(serial).toEqual(upTo(7));
    expect(migration.run()).toBe('sent');
  });
});

describe('a destination that is short of memory', () => {
  /** A destination with so many free frames beside those of the guest's VM, before any of its memory has come. */
  const beginWith = (free: number) => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there', memoryBytes: 4 * 2 ** 20 })];
    const guest = plainGuest(here);
    for (let page = 0; page < 16; page++) guest.vmm.write(guest.address + BALLAST + page * PAGE_SIZE, Uint8Array.of(page + 1));
    const serial: number[] = [];
    for (let run = 0; run < 3; run++) runOnce(guest, serial);
    completeIo(guest);
    const migration = new Migration(guest, there.vmm, (frame) => frame, AT_ONCE);
    migration.until(() => migration.received !== null);
    const { dram } = there.host.kernel;
    const hog = there.spawn();
    const pages = dram.total - dram.used - free;
    const memory = hog.map(null, dram.total * PAGE_SIZE);
    hog.write(memory, new Uint8Array(pages * PAGE_SIZE));
    return { there, guest, serial, migration, hog, memory, pages };
  };

  it('does not take the guest over: it goes on where it was', () => {
    const { there, guest, serial, migration } = beginWith(10);
    expect(migration.run()).toBe('HOST_MEMORY_EXHAUSTED');
    expect(migration.destination.state).toMatchObject({ phase: 'aborted', reason: 'HOST_MEMORY_EXHAUSTED' });
    expect(there.host.kernel.dram.reserved).toBe(0);
    runOnce(guest, serial);
    expect(serial).toEqual(upTo(4));
  });

  it('keeps room for all that is owed once it has said that it is prepared, whoever wants some meanwhile', () => {
    const { serial, migration, hog, memory, pages } = beginWith(24);
    migration.until(() => migration.destination.state.phase === 'prepared');
    const { mm } = hog.process.process;
    expect(mm?.write(memory + pages * PAGE_SIZE, new Uint8Array(24 * PAGE_SIZE))).toMatchObject({ errno: 'ENOMEM' });
    migration.until(() => migration.source.state.phase === 'serving');
    count(migration, migration.arrived(), serial);
    expect(migration.run()).toBe('sent');
    expect(migration.destination.state).toEqual({ phase: 'committed', lost: 0 });
    expect(serial).toEqual(upTo(4));
  });
});

describe('an encrypted guest', () => {
  it('is not handed over before its memory, since the firmware takes no page after RECEIVE_FINISH', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here);
    expect(whyNoPostCopy(guest.vm)).toMatchObject({ errno: 'EINVAL', details: { field: 'limits.post_copy' } });
    const migration = new Migration(guest, there.vmm, (frame) => frame, AT_ONCE);
    expect(migration.run()).toBe('POST_COPY_NOT_FOR_ENCRYPTED');
    expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
  });
});
