import { describe, expect, it } from 'vitest';
import { failed } from '../../../server/kernel/failure.js';
import { dup } from '../../../server/kernel/syscalls/descriptors.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { because } from '../../../server/migration/reason.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { Migration, plainGuest, sevEsGuest, sevGuest } from './two-hosts.js';

const KINDS = { plain: plainGuest, SEV: sevGuest, 'SEV-ES': sevEsGuest } as const;

describe.each(['plain', 'SEV', 'SEV-ES'] as const)('the complete copy of a %s guest, given up before Commit', (name) => {
  it('does not run in a KVM_RUN that has waited for it', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const migration = new Migration(KINDS[name](here), there.vmm);
    migration.until(() => migration.destination.state.phase === 'prepared');
    const { vmFd, vcpuFd, vcpu, vm } = migration.arrived();
    const kept = there.vmm.process.must(there.vmm.process.call((current) => dup(current, vmFd)));
    const { executed } = vcpu.arch.cpu;
    const run = there.vmm.process.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    expect(run.result()).toBeUndefined();

    migration.destination.abort(because('OPERATOR'));
    there.host.kernel.scheduler.run();

    expect(vcpu.arch.cpu.executed).toBe(executed);
    const answer = run.result();
    expect(failed(answer) && answer.errno).toBe('EIO');
    expect(vm.life.kind).toBe('dead');
    // A VMM that has kept a descriptor gets no vCPU with it either.
    const another = there.vmm.process.ioctl(kept, IOCTL.KVM_CREATE_VCPU, 1);
    expect(failed(another) && another.errno).toBe('EIO');
    expect(migration.run()).toBe('OPERATOR');
  });
});
