import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { DEFAULT_HOST_CONFIG } from '../../../server/kernel/config.js';
import { type Failure, failed } from '../../../server/kernel/failure.js';
import { describeGuest } from '../../../server/migration/describe.js';
import { targetOf, whyNotReceived } from '../../../server/migration/local-destination.js';
import { reasonOf } from '../../../server/migration/reason.js';
import { createSevRig, type SevRig } from '../kernel/kvm/svm/sev-rig.js';
import { type CountingGuest, Migration, plainGuest, sevEsGuest, sevGuest } from './two-hosts.js';

const { sev } = DEFAULT_HOST_CONFIG;

/** What a dry run says at the destination. */
const foreseen = ({ vm }: CountingGuest, { vmm }: SevRig): Failure | null => {
  const { kernel, process } = vmm.process;
  const description = describeGuest(vm);
  if (failed(description)) return description;
  const target = targetOf(kernel, description);
  return whyNotReceived(kernel, process, description) ?? (failed(target) ? target : null);
};

/** Guests of other VMMs, as many as there can be. */
const others = (rig: SevRig, count: number, es: boolean): void => {
  for (let guest = 0; guest < count; guest++) rig.spawn().createSevGuest({ vcpus: 0, es });
};

const limited = (rig: SevRig): SevRig => {
  const { kernel, process } = rig.vmm.process;
  const group = kernel.miscCgroups.create('tenant');
  group.max.sev = 1;
  kernel.miscCgroups.attach(process, group);
  rig.vmm.createSevGuest({ vcpus: 0 });
  return rig;
};

const withoutDescriptors = (rig: SevRig): SevRig => {
  const { files } = rig.vmm.process.process;
  const [[fd] = [-1]] = files.entries();
  const file = files.get(fd);
  if (failed(file)) throw new Error('the VMM has no descriptor');
  while (files.room > 2) rig.vmm.process.must(files.install(file.get(), true));
  return rig;
};

/** A host of so many pages more than a VMM needs by itself. */
const smallHost = (pages: number): SevRig => {
  const used = createSevRig({ seed: 'used' }).host.kernel.dram.used;
  return createSevRig({ seed: 'small', memoryBytes: (used + pages) * PAGE_SIZE });
};

const pinnedGuest = (rig: SevRig): CountingGuest => {
  const guest = sevGuest(rig);
  expect(guest.vmm.region(guest.vmFd, 'REG', guest.address, 64 * PAGE_SIZE)).toBe(0);
  return guest;
};

const holdings = ({ host: { kernel } }: SevRig) => ({
  vms: kernel.vms.size,
  frames: [kernel.dram.used, kernel.dram.reserved],
  bytes: kernel.kmem.chargedBytes + kernel.kmem.reachableBytes,
  contexts: kernel.amd?.processor.guests(),
  asids: kernel.ops.asidsToReclaim?.(),
  charged: kernel.miscCgroups.root.events,
});

interface Case {
  readonly what: string;
  readonly guest: (rig: SevRig) => CountingGuest;
  readonly there: () => SevRig;
  readonly errno: string;
  readonly reason: string;
  readonly details: Readonly<Record<string, string>>;
}

const CASES: readonly Case[] = [
  {
    what: 'no ASID for SEV guests',
    guest: sevGuest,
    there: () => createSevRig({ seed: 'there', sev: { ...sev, asids: 9, minSevAsid: 10 } }),
    ...{ errno: 'ENOTTY', reason: 'NO_ASIDS_OF_CLASS', details: { class: 'sev' } },
  },
  {
    what: 'no ASID for SEV-ES guests',
    guest: sevEsGuest,
    there: () => createSevRig({ seed: 'there', sev: { ...sev, minSevAsid: 1 } }),
    ...{ errno: 'ENOTTY', reason: 'SEV_ES_NOT_ENABLED', details: { allowed: 'a host with SEV-ES' } },
  },
  {
    what: 'SEV switched off',
    guest: sevGuest,
    there: () => createSevRig({ seed: 'there', sev: { ...sev, enabled: false } }),
    ...{ errno: 'ENOTTY', reason: 'SEV_NOT_ENABLED', details: { allowed: 'a host with SEV enabled' } },
  },
  {
    what: 'all ASIDs of SEV guests in use',
    guest: sevGuest,
    there: () => {
      const rig = createSevRig({ seed: 'there', sev: { ...sev, asids: 5, minSevAsid: 4 } });
      others(rig, 2, false);
      return rig;
    },
    // Its capacity is the number of ASIDs, and it is asked first.
    ...{ errno: 'EBUSY', reason: 'MISC_CGROUP_LIMIT', details: { cgroup: '/', resource: 'sev' } },
  },
  {
    what: 'all ASIDs of SEV-ES guests in use',
    guest: sevEsGuest,
    there: () => {
      const rig = createSevRig({ seed: 'there', sev: { ...sev, asids: 5, minSevAsid: 3 } });
      others(rig, 2, true);
      return rig;
    },
    ...{ errno: 'EBUSY', reason: 'MISC_CGROUP_LIMIT', details: { cgroup: '/', resource: 'sev_es' } },
  },
  {
    what: 'a limit of the misc cgroup',
    guest: sevGuest,
    there: () => limited(createSevRig({ seed: 'there' })),
    ...{ errno: 'EBUSY', reason: 'MISC_CGROUP_LIMIT', details: { cgroup: 'tenant', resource: 'sev' } },
  },
  {
    what: 'no descriptors left in the process',
    guest: sevGuest,
    there: () => withoutDescriptors(createSevRig({ seed: 'there' })),
    ...{ errno: 'EMFILE', reason: 'FD_TABLE_FULL', details: { limit: '65536', needed: '3', free: '2' } },
  },
  {
    what: 'no memory for what the guest has touched',
    guest: (rig) => {
      const guest = plainGuest(rig);
      rig.vmm.write(guest.address + 16 * PAGE_SIZE, new Uint8Array(32 * PAGE_SIZE).fill(1));
      return guest;
    },
    there: () => smallHost(33),
    ...{ errno: 'ENOMEM', reason: 'HOST_MEMORY_EXHAUSTED', details: { needed: '34' } },
  },
  {
    what: 'no memory for what is pinned',
    guest: pinnedGuest,
    there: () => smallHost(63),
    ...{ errno: 'ENOMEM', reason: 'HOST_MEMORY_EXHAUSTED', details: { needed: '64' } },
  },
];

describe('a dry run', () => {
  it.each(CASES)('foresees $what, in the words of the refusal', ({ guest, there, errno, reason, details }) => {
    const [from, to] = [createSevRig({ seed: 'here' }), there()];
    const sent = guest(from);
    const before = [holdings(from), holdings(to)];
    const refusal = foreseen(sent, to);
    expect(refusal).toMatchObject({ errno, reason, details });
    expect([holdings(from), holdings(to)], 'nothing has changed').toEqual(before);
    if (refusal === null) return;
    const migration = new Migration(sent, to.vmm);
    expect(migration.run()).toBe(reason);
    expect(migration.source.state).toMatchObject(reasonOf(refusal));
  });

  /** What KVM tells a VMM that makes such a guest itself. */
  it.each(CASES.filter(({ errno }) => errno === 'ENOTTY' || errno === 'EBUSY'))(
    'says of $what what KVM says to a VMM there',
    ({ guest, there, errno, reason }) => {
      const { vmm } = there();
      const { fd } = vmm.process.createVm(0);
      const name = guest === sevEsGuest ? 'ES_INIT' : 'INIT';
      expect(vmm.command(fd, name).failure).toMatchObject({ errno, reason });
    },
  );

  it.each([
    ['a plain guest', plainGuest, () => smallHost(200)],
    [
      'a SEV guest, with the last ASID',
      sevGuest,
      () => createSevRig({ seed: 'there', sev: { ...sev, asids: 4, minSevAsid: 4 } }),
    ],
    [
      'a SEV guest, with an ASID that has been given back',
      sevGuest,
      () => {
        const rig = createSevRig({ seed: 'there', sev: { ...sev, asids: 4, minSevAsid: 4 } });
        const { process } = rig.vmm;
        const { fd } = rig.vmm.createSevGuest({ vcpus: 0 });
        process.call((current) => process.process.files.close(current, fd));
        return rig;
      },
    ],
    [
      'a guest that takes the last descriptors',
      (rig: SevRig) => plainGuest(rig),
      () => withoutDescriptors(createSevRig({ seed: 'there' })),
    ],
  ] as const)('has nothing against %s, which comes', (_what, guest, there) => {
    const [from, to] = [createSevRig({ seed: 'here' }), there()];
    const sent = guest(from);
    expect(foreseen(sent, to)).toBeNull();
    expect(new Migration(sent, to.vmm).run()).toBe('sent');
  });
});
