import { describe, expect, it } from 'vitest';
import { failed } from '../../../server/kernel/failure.js';
import type { Vm } from '../../../server/kernel/kvm/vm.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../../../server/kernel/uapi/x86-structs.js';
import { describeGuest, whyNotSent } from '../../../server/migration/describe.js';
import type { GuestDescription } from '../../../server/migration/guest.js';
import { KINDS } from '../../../server/migration/kinds.js';
import { whyNotReceived } from '../../../server/migration/local-destination.js';
import { whyTargetRefused } from '../../../server/migration/local-source.js';
import { because } from '../../../server/migration/reason.js';
import { createSevRig, type SevRig } from '../kernel/kvm/svm/sev-rig.js';
import { createSnpGuest, createSnpHost } from '../kernel/kvm/svm/snp/snp-guest.js';
import { createTestHost } from '../kernel/kvm/test-host.js';
import { Migration, plainGuest, sevGuest } from './two-hosts.js';

const described = (vm: Vm): GuestDescription => {
  const description = describeGuest(vm);
  if (failed(description)) throw new Error(description.reason);
  return description;
};

describe('a dry run on the source', () => {
  it('finds nothing against a plain guest and a SEV guest', () => {
    expect(whyNotSent(plainGuest(createSevRig()).vm)).toBeNull();
    expect(whyNotSent(sevGuest(createSevRig()).vm)).toBeNull();
  });

  it('refuses a VM that has been sent, and one that is just being sent', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = plainGuest(here);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    expect(whyNotSent(guest.vm)).toMatchObject({ errno: 'EBUSY', reason: 'MIGRATION_UNDER_WAY' });
    expect(migration.run()).toBe('sent');
    expect(whyNotSent(guest.vm)).toMatchObject({ errno: 'EIO', reason: 'VM_NOT_ALIVE' });
  });

  it('refuses a VM that another migration is about to take, also before a destination has said yes, until that is over', () => {
    const [here, there, elsewhere] = ['here', 'there', 'elsewhere'].map((seed) => createSevRig({ seed }));
    if (here === undefined || there === undefined || elsewhere === undefined) throw new Error('three hosts');
    const guest = plainGuest(here);
    const first = new Migration(guest, there.vmm);
    expect(first.source.state.phase).toBe('negotiating');
    expect(whyNotSent(guest.vm)).toMatchObject({
      errno: 'EBUSY',
      reason: 'MIGRATION_UNDER_WAY',
      details: { session: 'session' },
    });
    expect(() => new Migration(guest, elsewhere.vmm)).toThrow('MIGRATION_UNDER_WAY');
    first.source.cancel(because('OPERATOR'));
    expect(first.run()).toBe('OPERATOR');
    expect(new Migration(guest, elsewhere.vmm).run()).toBe('sent');
  });

  it('refuses a SEV-SNP guest, whose pages only a migration agent could take along', () => {
    const { vm } = createSnpGuest(createSnpHost().vmm, { code: [] });
    expect(whyNotSent(vm)).toMatchObject({ errno: 'EINVAL', reason: 'SNP_NEEDS_MIGRATION_AGENT' });
  });

  it('refuses a guest that is mirrored, and its mirror', () => {
    const rig = createSevRig();
    const owner = rig.vmm.createSevGuest();
    const mirror = rig.vmm.createGuest(0);
    expect(rig.vmm.copy(mirror.fd, owner.fd)).toBe(0);
    expect(whyNotSent(owner.vm)).toMatchObject({ reason: 'VM_IS_MIRRORED' });
    expect(whyNotSent(mirror.vm)).toMatchObject({ reason: 'VM_IS_MIRRORED' });
  });
});

describe("a dry run that asks the guest's platform", () => {
  const NOSEND = 1 << 3;
  const DOMAIN = 1 << 4;
  const POLICY_FAILURE = 7;

  /** What the platform of a host is to others. */
  const targetOf = ({ host }: SevRig): Uint8Array => {
    const target = KINDS.sev.target(host.kernel);
    if (failed(target)) throw new Error(target.reason);
    return target;
  };

  it('finds nothing against a guest that may go, which is as it was', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = sevGuest(here);
    const states = () => here.host.kernel.amd?.processor.guests();
    const before = states();
    expect([whyTargetRefused(guest.vm, targetOf(there)), whyTargetRefused(guest.vm, null)]).toEqual([null, null]);
    expect(states()).toEqual(before);
    expect(whyTargetRefused(plainGuest(here).vm, null)).toBeNull();
    expect(new Migration(guest, there.vmm).run()).toBe('sent');
  });

  it.each([
    ['NOSEND', NOSEND, true],
    ['another owner', DOMAIN, false],
  ])('is told of %s', (_what, policy, alreadyHere) => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { vm } = sevGuest(here, policy);
    const refusal = { errno: 'EIO', reason: 'FIRMWARE_POLICY_FAILURE', fwError: POLICY_FAILURE };
    expect(whyTargetRefused(vm, targetOf(there))).toMatchObject(refusal);
    if (alreadyHere) expect(whyTargetRefused(vm, null)).toMatchObject(refusal);
    else expect(whyTargetRefused(vm, null)).toBeNull();
  });

  it('is told of a launch that is not over', () => {
    const { vm } = createSevRig().vmm.createSevGuest();
    expect(whyTargetRefused(vm, null)).toMatchObject({ reason: 'FIRMWARE_INVALID_GUEST_STATE' });
  });
});

/** What the process of a VMM would be told. */
const refusalOf = ({ vmm }: SevRig, description: GuestDescription) =>
  whyNotReceived(vmm.process.kernel, vmm.process.process, description);

describe('a dry run on the destination', () => {
  const here = (): GuestDescription => described(plainGuest(createSevRig()).vm);

  it('finds nothing against a guest of a like host', () => {
    expect(refusalOf(createSevRig(), here())).toBeNull();
  });

  const toldOf = (...entries: readonly Parameters<typeof kvm_cpuid_entry2.encode>[0][]): GuestDescription => {
    const told = entries.flatMap((each) => [...kvm_cpuid_entry2.encode(each)]);
    const cpuid = Uint8Array.from([...kvm_cpuid2.encode({ nent: entries.length }), ...told]);
    return { ...here(), vcpus: [{ id: 3, cpuid }] };
  };

  it.each([
    ['a feature', { function: 7, ebx: 0xffff_ffff }, /^ebx 0x/],
    ['a feature of the other vendor', { function: 0x8000_0001, ecx: 1 << 4 }, /^ecx 0x10$/],
    ['LFENCE that serializes', { function: 0x8000_0021, eax: 1 << 2 }, /^eax 0x4$/],
    ['wider physical addresses', { function: 0x8000_0008, eax: 52 }, /^physical addresses of 52 bits: this host has 48$/],
    ['wider linear addresses', { function: 0x8000_0008, eax: (64 << 8) | 48 }, /^linear addresses of 64 bits/],
  ])('refuses %s that this host does not have, and says which', (_what, entry, missing) => {
    const { kernel, process } = createTestHost({ vendor: 'intel' });
    expect(whyNotReceived(kernel, process, toldOf({ function: 1 }, entry))).toMatchObject({
      reason: 'CPUID_NOT_SUPPORTED',
      details: { vcpu: '3', leaf: `0x${entry.function.toString(16)}`, missing: expect.stringMatching(missing) },
    });
  });

  it('has nothing against what is told of the machine, and is no feature', () => {
    const topology = { function: 0xb, index: 1, eax: 4, ebx: 8, ecx: 0x201 };
    expect(refusalOf(createSevRig(), toldOf(topology, { function: 0x8000_0008, eax: 40, ecx: 7 }))).toBeNull();
  });

  it('refuses memory that no guest can have', () => {
    const slot = { id: 0, gpa: 0, bytes: 2 ** 50, flags: 0, pinned: false, userspaceAddress: 0 };
    for (const bytes of [2 ** 50, 100, 0, -4096])
      expect(refusalOf(createSevRig(), { ...here(), slots: [{ ...slot, bytes }] })).toMatchObject({
        reason: 'GUEST_MEMORY_SIZE',
      });
  });
});
