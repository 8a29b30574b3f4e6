import { describe, expect, it } from 'vitest';
import { toSevInfo } from '../../../../../server/kernel/kvm/svm/sev-info.js';
import { SIGKILL } from '../../../../../server/kernel/process/thread.js';
import { createSevRig, esGuest } from './sev-rig.js';

describe('a move to a process of another misc cgroup', () => {
  const setup = () => {
    const rig = createSevRig();
    const group = rig.host.kernel.miscCgroups.create('destination');
    const other = rig.spawn();
    rig.host.kernel.miscCgroups.attach(other.process.process, group);
    return { ...rig, other, group };
  };

  it('charges the group of the caller and gives back what the source’s group had', () => {
    const { vmm, other, group, host } = setup();
    const source = vmm.createSevGuest();
    expect(other.tryMove(other.createGuest(0).fd, vmm.send(source.fd, other))).toBe(0);
    expect([group.current('sev'), host.kernel.miscCgroups.root.current('sev')]).toEqual([1, 1]);
    other.process.closeAll();
    vmm.process.closeAll();
    expect([group.current('sev'), host.kernel.miscCgroups.root.current('sev')]).toEqual([0, 0]);
  });

  it('EBUSY at the group’s limit; a refusal after the charge gives it back, and the source lives', () => {
    const { vmm, other, group } = setup();
    const source = esGuest(vmm, 1);
    const sent = vmm.send(source.fd, other);
    group.max.sev_es = 0;
    expect(other.move(other.createGuest(1).fd, sent)).toMatchObject({ errno: 'EBUSY', reason: 'MISC_CGROUP_LIMIT' });
    group.max.sev_es = 1;
    expect(other.tryMove(other.createGuest(0).fd, sent)).toBe('EINVAL');
    expect(group.current('sev_es')).toBe(0);
    expect([source.vm.life.kind, toSevInfo(source.vm).active]).toEqual(['alive', true]);
    expect(other.tryMove(other.createGuest(1).fd, sent)).toBe(0);
  });

  it('waits for a vCPU in KVM_RUN, and dies with its process without a trace', () => {
    const { vmm, other, host } = setup();
    const source = vmm.createSevGuest();
    const destination = other.createGuest(1);
    const [running] = source.vcpus;
    if (running === undefined) throw new Error('a guest without vCPUs');
    const { vcpu } = running;
    const holder = vmm.process.start(function* holding(current) {
      yield* vcpu.mutex.lock(current);
      yield { kind: 'interruptible', queue: vcpu.arch.wait, site: 'test' };
      vcpu.mutex.unlock(current);
    });
    const move = other.startMove(destination.fd, vmm.send(source.fd, other));
    expect(move.result()).toBeUndefined();
    expect([source.vm.lock.locked, destination.vm.lock.locked]).toEqual([true, true]);
    expect(vmm.move(vmm.createGuest(0).fd, source.fd)).toMatchObject({ errno: 'EBUSY', reason: 'MIGRATION_IN_PROGRESS' });
    move.task.signal(SIGKILL);
    host.kernel.scheduler.run();
    expect(move.result()).toMatchObject({ errno: 'EINTR' });
    expect([source.vm.lock.locked, destination.vm.lock.locked, source.vm.life.kind]).toEqual([false, false, 'alive']);
    expect(toSevInfo(source.vm)).toMatchObject({ active: true, migrationInProgress: false });
    holder.task.signal(2);
    host.kernel.scheduler.run();
    expect(vmm.tryMove(vmm.createGuest(0).fd, source.fd)).toBe(0);
  });
});

describe('known upstream defects of charging', () => {
  const scenario = (knownUpstreamDefects: boolean) => {
    const rig = createSevRig({ knownUpstreamDefects });
    const { vmm, host } = rig;
    const other = rig.spawn();
    const group = host.kernel.miscCgroups.create('destination');
    host.kernel.miscCgroups.attach(other.process.process, group);
    const source = esGuest(vmm, 1);
    other.move(other.createGuest(1).fd, vmm.send(source.fd, other));
    const charged = { sev: group.current('sev'), sevEs: group.current('sev_es') };
    other.process.closeAll();
    vmm.process.closeAll();
    host.kernel.sanitizer.callEnded();
    return { charged, findings: host.kernel.findings.all.map(({ kind }) => kind) };
  };

  it('are off: no byte stays, and SEV-ES is charged as SEV-ES', () => {
    expect(scenario(false)).toEqual({ charged: { sev: 0, sevEs: 1 }, findings: [] });
  });

  it('can be switched on: the CPU mask of the source leaks, and the wrong class is charged', () => {
    const { charged, findings } = scenario(true);
    expect(charged).toEqual({ sev: 1, sevEs: 0 });
    expect(new Set(findings)).toEqual(new Set(['KMEM_LEAKED']));
  });
});
