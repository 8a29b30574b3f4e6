import { describe, expect, it } from 'vitest';
import { POST_MOVE_POLICIES } from '../../../server/kernel/kvm/post-move/policy.js';
import { KVM_EXIT } from '../../../server/kernel/uapi/constants.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { Migration, plainGuest, runOnce, sevEsGuest, sevGuest } from './two-hosts.js';

const KINDS = { plain: plainGuest, SEV: sevGuest, 'SEV-ES': sevEsGuest } as const;
const NAMES = ['plain', 'SEV', 'SEV-ES'] as const;

describe.each(NAMES)('the VM of a %s guest that has been sent', (name) => {
  it.each(POST_MOVE_POLICIES)('does not let the guest run a second time under %s', (policy) => {
    const here = createSevRig({ seed: 'here', postMovePolicy: policy });
    const there = createSevRig({ seed: 'there' });
    const guest = KINDS[name](here);
    expect(new Migration(guest, there.vmm).run()).toBe('sent');
    const serial: number[] = [];
    const before = guest.vcpu.arch.cpu.executed;
    const answer = runOnce(guest, serial);
    expect(serial).toEqual([]);
    expect(guest.vcpu.arch.cpu.executed).toBe(before);
    expect(['EIO', 0, KVM_EXIT.UNKNOWN, KVM_EXIT.FAIL_ENTRY]).toContain(answer);
    expect(guest.vm.life).toMatchObject({ cause: { kind: 'sent' }, policy: { name: policy } });
  });
});

describe('200 guests that are sent at once', () => {
  it('all arrive, and leave nothing on their host once they are closed', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guests = Array.from({ length: 200 }, () => plainGuest(here));
    const migrations = guests.map((guest) => new Migration(guest, there.vmm));
    for (let step = 0; step < 500 && !migrations.every(({ over }) => over); step++)
      for (const migration of migrations) migration.step();
    expect(migrations.map((migration) => migration.run())).toEqual(guests.map(() => 'sent'));
    for (const { vmFd, vcpuFd } of guests) {
      here.vmm.process.close(vcpuFd);
      here.vmm.process.close(vmFd);
    }
    expect(here.host.kernel.vms.size).toBe(0);
    const serial: number[] = [];
    for (const migration of migrations) runOnce(migration.arrived(), serial);
    expect(serial).toEqual(guests.map(() => 1));
  });
});
