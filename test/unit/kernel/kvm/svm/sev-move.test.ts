import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { DEFAULT_HOST_CONFIG } from '../../../../../server/kernel/config.js';
import { failed } from '../../../../../server/kernel/failure.js';
import type { MovePhase } from '../../../../../server/kernel/kvm/move-phase.js';
import { toSevInfo } from '../../../../../server/kernel/kvm/svm/sev-info.js';
import { toSvm } from '../../../../../server/kernel/kvm/svm/vcpu-svm.js';
import { VM_TYPE } from '../../../../../server/kernel/kvm/vm.js';
import { KVM_EXIT, KVM_MP_STATE } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_mp_state } from '../../../../../server/kernel/uapi/kvm-structs.js';
import { kvm_sev_init } from '../../../../../server/kernel/uapi/sev-structs.js';
import { expectLeak } from '../../../../helpers/leftovers.js';
import { createSevRig, errnoOf, esGuest, OUT_AND_HALT, type Vmm } from './sev-rig.js';

const first = <T>([item]: readonly T[]): T => {
  if (item === undefined) throw new Error('there is none');
  return item;
};

describe('sev_migrate_tests', () => {
  for (const es of [false, true])
    it(`a ${es ? 'SEV-ES' : 'SEV'} guest moves from VM to VM, and not back into a dead one`, () => {
      const { vmm, host } = createSevRig();
      const source = es ? esGuest(vmm, 4) : vmm.createSevGuest({ vcpus: 4 });
      const chain = [source, ...Array.from({ length: 3 }, () => vmm.createGuest(4))];
      for (let index = 1; index < chain.length; index++)
        expect(vmm.tryMove(chain[index]?.fd ?? -1, chain[index - 1]?.fd ?? -1)).toBe(0);
      expect(vmm.tryMove(source.fd, chain[3]?.fd ?? -1)).toBe('EIO');
      for (const { fd, vcpus } of chain) {
        vmm.process.close(fd);
        for (const vcpu of vcpus) vmm.process.close(vcpu.fd);
      }
      expect(host.kernel.vms.size).toBe(0);
      expect(host.kernel.amd?.processor.guests()).toEqual([]);
      host.kernel.sanitizer.callEnded();
      expect(host.kernel.findings.all).toEqual([]);
    });

  it('refuses what does not fit', () => {
    const { vmm } = createSevRig();
    const [sev, es] = [vmm.createSevGuest({ vcpus: 4 }), esGuest(vmm, 4)];
    const unmeasured = vmm.createSevGuest({ es: true });
    const plain = vmm.createGuest(0);
    const reason = (fd: number, sourceFd: number) => {
      const result = vmm.move(fd, sourceFd);
      return failed(result) ? `${result.errno} ${result.reason}` : result;
    };
    expect(reason(vmm.createGuest(0).fd, plain.fd)).toBe('EINVAL SOURCE_NOT_SEV_GUEST');
    expect(reason(sev.fd, es.fd)).toBe('EINVAL DESTINATION_IS_SEV_GUEST');
    expect(reason(es.fd, sev.fd)).toBe('EINVAL DESTINATION_IS_SEV_GUEST');
    expect(reason(plain.fd, es.fd)).toBe('EINVAL VCPU_COUNT_MISMATCH');
    expect(reason(plain.fd, unmeasured.fd)).toBe('EINVAL VCPU_COUNT_MISMATCH');
    expect(reason(vmm.createGuest(1).fd, unmeasured.fd)).toBe('EINVAL VMSA_NOT_ENCRYPTED');
  });

  for (const es of [false, true])
    it(`mirrors a ${es ? 'SEV-ES' : 'SEV'} guest, which takes four commands and no other`, () => {
      const { vmm } = createSevRig();
      const source = es ? esGuest(vmm, 1) : vmm.createSevGuest();
      const mirror = vmm.createGuest(0);
      expect(vmm.copy(mirror.fd, source.fd)).toBe(0);
      for (let id = 0; id < 4; id++) vmm.process.createVcpu(mirror.fd, id);
      if (es) expect(vmm.command(mirror.fd, 'LAUNCH_UPDATE_VMSA').result).toBe(0);
      const allowed = new Set([4, 16, 17, 18]);
      for (let id = 0; id < 104; id++)
        if (!allowed.has(id)) expect([id, vmm.command(mirror.fd, id).result]).toEqual([id, 'EINVAL']);
      expect(vmm.status(mirror).result).toBe(0);
    });

  it('refuses a mirror of what cannot be mirrored', () => {
    const { vmm } = createSevRig();
    const [sev, es, plain] = [vmm.createSevGuest(), esGuest(vmm, 1), vmm.createGuest(1)];
    const errno = (fd: number, sourceFd: number) => {
      const result = vmm.copy(fd, sourceFd);
      return failed(result) ? result.errno : result;
    };
    expect(errno(sev.fd, sev.fd)).toBe('EINVAL');
    expect(errno(vmm.createGuest(0).fd, plain.fd)).toBe('EINVAL');
    expect(errno(plain.fd, sev.fd)).toBe('EINVAL');
    expect([errno(sev.fd, es.fd), errno(es.fd, sev.fd)]).toEqual(['EINVAL', 'EINVAL']);
    const mirror = vmm.createGuest(0);
    expect(errno(mirror.fd, sev.fd)).toBe(0);
    expect(errno(vmm.createGuest(0).fd, mirror.fd)).toBe('EINVAL');
  });

  for (const ownersFirst of [true, false])
    it(`moves owner and mirror in any order; ${ownersFirst ? 'owners' : 'mirrors'} are freed first`, () => {
      const { vmm, host } = createSevRig();
      let owner = vmm.createSevGuest();
      let mirror = vmm.createGuest(0);
      expect(vmm.copy(mirror.fd, owner.fd)).toBe(0);
      const owners = [owner];
      const mirrors = [mirror];
      for (let generation = 0; generation < 3; generation++) {
        const [nextOwner, nextMirror] = [vmm.createGuest(1), vmm.createGuest(1)];
        const moves = [() => vmm.tryMove(nextMirror.fd, mirror.fd), () => vmm.tryMove(nextOwner.fd, owner.fd)];
        for (const move of generation % 2 === 0 ? moves : moves.reverse()) expect(move()).toBe(0);
        [owner, mirror] = [nextOwner, nextMirror];
        owners.push(owner);
        mirrors.push(mirror);
        expect(toSevInfo(mirror.vm).encContextOwner).toBe(owner.vm);
        expect([...toSevInfo(owner.vm).mirrorVms]).toEqual([mirror.vm]);
      }
      for (const guest of ownersFirst ? [...owners, ...mirrors] : [...mirrors, ...owners]) {
        vmm.process.close(guest.fd);
        for (const vcpu of guest.vcpus) vmm.process.close(vcpu.fd);
      }
      expect(host.kernel.vms.size).toBe(0);
      host.kernel.sanitizer.callEnded();
      expect(host.kernel.findings.all).toEqual([]);
      expect(host.kernel.amd?.processor.guests()).toEqual([]);
    });
});

describe('the checks of a move, in their order', () => {
  it('EBADF for a descriptor that is closed or is no VM', () => {
    const { vmm } = createSevRig();
    const { fd, vcpus } = vmm.createGuest(1);
    expect(vmm.tryMove(fd, 999)).toBe('EBADF');
    expect(vmm.tryMove(fd, vmm.sevFd)).toBe('EBADF');
    expect(vmm.tryMove(fd, first(vcpus).fd)).toBe('EBADF');
    expect(vmm.tryMove(fd, -1)).toBe('EBADF');
  });

  it('EINVAL for the same VM before anything else is looked at', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createSevGuest();
    expect(vmm.move(fd, fd)).toMatchObject({ errno: 'EINVAL', reason: 'SAME_VM' });
  });

  it('EINVAL for VMs of different types; a destination of an SEV type is accepted and can never run', () => {
    const { vmm } = createSevRig();
    const source = vmm.createSevGuest();
    expect(vmm.move(vmm.createGuest(0, VM_TYPE.SEV).fd, source.fd)).toMatchObject({ reason: 'VM_TYPE_MISMATCH' });
    const typed = vmm.createGuest(0, VM_TYPE.SEV);
    vmm.must(vmm.command(typed.fd, 'INIT2', kvm_sev_init.encode({})));
    const lost = vmm.createGuest(1, VM_TYPE.SEV);
    expect(vmm.tryMove(lost.fd, typed.fd)).toBe(0);
    expect(toSevInfo(lost.vm)).toMatchObject({ active: true, needInit: true });
    expect(vmm.run(first(lost.vcpus).fd)).toBe('EINVAL');
  });

  it('EINVAL, not EIO, for a source that has moved already', () => {
    const { vmm } = createSevRig();
    const source = vmm.createSevGuest();
    expect(vmm.tryMove(vmm.createGuest(0).fd, source.fd)).toBe(0);
    expect(vmm.tryMove(vmm.createGuest(0).fd, source.fd)).toBe('EINVAL');
  });

  it('EBUSY while a vCPU of either VM is being created', () => {
    const { vmm } = createSevRig();
    const [source, destination] = [vmm.createSevGuest(), vmm.createGuest(0)];
    for (const { vm } of [source, destination]) {
      vm.createdVcpus++;
      expect(vmm.move(destination.fd, source.fd)).toMatchObject({ errno: 'EBUSY', reason: 'VCPU_CREATION_IN_PROGRESS' });
      vm.createdVcpus--;
    }
    expect(vmm.tryMove(destination.fd, source.fd)).toBe(0);
  });

  it('accepts a source of another process, and an SEV-ES source without vCPUs', () => {
    const rig = createSevRig();
    const other = rig.spawn();
    const source = esGuest(rig.vmm, 0);
    expect(other.tryMove(other.createGuest(0).fd, rig.vmm.send(source.fd, other))).toBe(0);
    expect(rig.vmm.process.try(source.fd, IOCTL.KVM_CHECK_EXTENSION, 3)).toBe('EIO');
  });

  it('the dry run gives the same answers, and changes nothing', () => {
    const { vmm, host } = createSevRig();
    const [source, destination] = [vmm.createSevGuest(), vmm.createGuest(0)];
    const validate = (fd: number, sourceFd: number) =>
      vmm.process.call(function* asking(current) {
        const { ops } = host.kernel;
        return ops.validateMoveEncContextFrom?.(current, fd === source.fd ? source.vm : destination.vm, sourceFd) ?? null;
      });
    expect(validate(source.fd, source.fd)).toMatchObject({ reason: 'SAME_VM' });
    expect(validate(source.fd, destination.fd)).toMatchObject({ reason: 'DESTINATION_IS_SEV_GUEST' });
    expect(validate(destination.fd, 999)).toMatchObject({ errno: 'EBADF' });
    const before = [host.kernel.costs.nanoseconds, source.vm.kmem.chargedBytes, destination.vm.kmem.chargedBytes];
    expect(validate(destination.fd, source.fd)).toBeNull();
    expect([host.kernel.costs.nanoseconds, source.vm.kmem.chargedBytes, destination.vm.kmem.chargedBytes]).toEqual(before);
    expect(toSevInfo(source.vm)).toMatchObject({ active: true, migrationInProgress: false });
    toSevInfo(destination.vm).migrationInProgress = true;
    expect(validate(destination.fd, source.fd)).toMatchObject({ errno: 'EBUSY' });
  });
});

describe('what moves and what stays', () => {
  it('takes ASID, handle, regions and pins, and leaves descriptor, policy word, jump table and GHCB version', () => {
    const { vmm } = createSevRig();
    const source = esGuest(vmm, 1);
    const ram = vmm.map(null, 2 * PAGE_SIZE);
    vmm.region(source.fd, 'REG', ram, 2 * PAGE_SIZE);
    toSevInfo(source.vm).apJumpTable = 0x1000n;
    const before = { ...toSevInfo(source.vm) };
    const destination = vmm.createGuest(1);
    expect(vmm.tryMove(destination.fd, source.fd)).toBe(0);
    const { asid, handle, regions, vmsaFeatures } = before;
    expect(toSevInfo(destination.vm)).toMatchObject({ active: true, esActive: true, asid, handle, vmsaFeatures, pagesLocked: 2 });
    expect(toSevInfo(destination.vm).regions).toHaveLength(regions.length + 1);
    expect(toSevInfo(destination.vm)).toMatchObject({ fd: 0, policy: 0, apJumpTable: 0n, ghcbVersion: 0, needInit: false });
    expect(toSevInfo(source.vm)).toMatchObject({
      active: false,
      esActive: false,
      asid: 0,
      handle: 0,
      pagesLocked: 0,
      regions: [],
    });
    expect(vmm.region(destination.fd, 'UNREG', ram, 2 * PAGE_SIZE)).toBe(0);
    expect(vmm.status(destination).result).toBe('EBADF');
  });

  it('charges stay where they were made, and hang on the destination', () => {
    const { vmm } = createSevRig();
    const source = esGuest(vmm, 2);
    vmm.region(source.fd, 'REG', vmm.map(null, PAGE_SIZE), PAGE_SIZE);
    const destination = vmm.createGuest(2);
    vmm.move(destination.fd, source.fd);
    for (const type of ['vmsa', 'enc_region', 'enc_region_pages']) {
      expect([type, source.vm.kmem.reachableByType.get(type)]).toEqual([type, undefined]);
      expect([type, source.vm.kmem.chargedByType.get(type)]).toEqual([type, destination.vm.kmem.reachableByType.get(type)]);
      expect([type, destination.vm.kmem.chargedByType.get(type)]).toEqual([type, undefined]);
    }
    expect(destination.vm.kmem.reachableByType.get('vmsa')).toBe(2 * PAGE_SIZE);
  });

  it('save areas go by index, and the old vCPU has nothing of the guest’s in its registers', () => {
    const { vmm } = createSevRig();
    const source = vmm.createSevGuest({ es: true, vcpus: 2 });
    for (const { vcpu } of source.vcpus) vcpu.arch.cpu.state.rip = 0x1234n;
    vmm.must(vmm.command(source.fd, 'LAUNCH_UPDATE_VMSA'));
    const pages = source.vcpus.map(({ vcpu }) => toSvm(vcpu).vmcb.vmsa);
    for (const { vcpu } of source.vcpus) vcpu.arch.cpu.state.rip = 0x5ec2e7n;
    const destination = vmm.createGuest(2);
    vmm.move(destination.fd, source.fd);
    expect(destination.vcpus.map(({ vcpu }) => toSvm(vcpu).vmcb.vmsa)).toEqual(pages);
    for (const { vcpu } of source.vcpus) {
      expect(toSvm(vcpu).vmcb).toMatchObject({ sevEnabled: true, sevEsEnabled: true, vmsa: null, ghcb: null });
      expect([toSvm(vcpu).guestStateProtected, vcpu.arch.state.rip]).toEqual([false, 0x1234n]);
    }
    expect(destination.vcpus.every(({ vcpu }) => toSvm(vcpu).guestStateProtected)).toBe(true);
  });

  it('runs on in the destination, over the same memory at another address', () => {
    const rig = createSevRig();
    const { vmm, host } = rig;
    const [other, source] = [rig.spawn(), vmm.createSevGuest()];
    const { vcpu, fd: vcpuFd } = first(source.vcpus);
    const shared = sharedRamOf(vmm, 16 * PAGE_SIZE);
    vmm.addSlot(source, 0, 0, shared.map(vmm), 16 * PAGE_SIZE);
    vmm.write(shared.map(vmm) + 0x1000, Uint8Array.of(0xe6, 0x10, ...OUT_AND_HALT(0x11)));
    vmm.must(vmm.updateData(source, shared.map(vmm) + 0x1000, PAGE_SIZE));
    vmm.must(vmm.command(source.fd, 'LAUNCH_FINISH'));
    vmm.startAt(vcpuFd, 0x1000);
    expect([vmm.run(vcpuFd), vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.IO]);
    // Completes the OUT without entering the guest again.
    vcpu.runPages.run.bytes[1] = 1;
    expect(vmm.run(vcpuFd)).toBe('EINTR');
    const destination = other.createGuest(1);
    other.addSlot(destination, 0, 0, shared.map(other), 16 * PAGE_SIZE);
    expect(other.tryMove(destination.fd, vmm.send(source.fd, other))).toBe(0);
    const moved = first(destination.vcpus);
    other.startAt(moved.fd, Number(vcpu.arch.state.rip));
    expect([other.run(moved.fd), moved.vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.IO]);
    expect(moved.vcpu.arch.run.exitReason).toBe(KVM_EXIT.IO);
    expect(host.kernel.findings.all).toEqual([]);
  });
});

/** Memory that several VMMs map, each at its own address. */
const sharedRamOf = (owner: Vmm, bytes: number) => {
  const mapped = new Map<Vmm, number>();
  const object = owner.sharedMemory(bytes);
  return {
    map: (vmm: Vmm): number => {
      const known = mapped.get(vmm);
      if (known !== undefined) return known;
      const address = vmm.map(object, bytes);
      mapped.set(vmm, address);
      return address;
    },
  };
};

describe('a mirror', () => {
  it('runs through the move of its owner, under the same ASID', () => {
    const rig = createSevRig();
    const { vmm, host } = rig;
    const owner = vmm.createSevGuest();
    const ram = vmm.map(null, 16 * PAGE_SIZE);
    vmm.addSlot(owner, 0, 0, ram, 16 * PAGE_SIZE);
    // hlt; out 0x10, al; hlt
    vmm.write(ram + 0x1000, Uint8Array.of(0xf4, ...OUT_AND_HALT(0x10)));
    vmm.must(vmm.updateData(owner, ram + 0x1000, PAGE_SIZE));
    vmm.must(vmm.command(owner.fd, 'LAUNCH_FINISH'));
    const mirror = vmm.createGuest(0);
    expect(errnoOf(vmm.copy(mirror.fd, owner.fd))).toBe(0);
    vmm.process.must(vmm.process.ioctl(mirror.fd, IOCTL.KVM_CREATE_IRQCHIP));
    const { fd, vcpu } = vmm.process.createVcpu(mirror.fd, 0);
    vmm.addSlot(mirror, 0, 0, ram, 16 * PAGE_SIZE);
    vmm.startAt(fd, 0x1000);
    const running = vmm.process.startIoctl(fd, IOCTL.KVM_RUN);
    expect([running.result(), vcpu.mutex.locked]).toEqual([undefined, true]);

    const { asid } = toSevInfo(owner.vm);
    const destination = vmm.createGuest(1);
    expect(vmm.tryMove(destination.fd, owner.fd)).toBe(0);
    expect([running.result(), toSevInfo(mirror.vm).asid, toSevInfo(destination.vm).asid]).toEqual([undefined, asid, asid]);
    expect(toSevInfo(mirror.vm).encContextOwner).toBe(destination.vm);

    running.task.signal(2);
    host.kernel.scheduler.run();
    expect(running.result()).toMatchObject({ errno: 'EINTR' });
    vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_SET_MP_STATE, kvm_mp_state.encode({ mp_state: KVM_MP_STATE.RUNNABLE })));
    expect([vmm.run(fd), vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.IO]);
    expect(host.kernel.findings.all).toEqual([]);
  });
});

describe('what a watcher is told', () => {
  it('each phase as it is reached, with counts and bytes', () => {
    const { vmm, host } = createSevRig();
    const source = esGuest(vmm, 2);
    vmm.region(source.fd, 'REG', vmm.map(null, 3 * PAGE_SIZE), 3 * PAGE_SIZE);
    const destination = vmm.createGuest(2);
    const { asid, handle } = toSevInfo(source.vm);
    const phases: MovePhase[] = [];
    const result = vmm.process.call(function* moving(current) {
      const observer = (phase: MovePhase): void => void phases.push(phase);
      const move = host.kernel.ops.vmMoveEncContextFrom;
      return move === undefined ? null : yield* move(current, destination.vm, source.fd, { observer });
    });
    expect(result).toBe(0);
    expect(phases).toEqual([
      { kind: 'vms-locked', source: source.vm.id, destination: destination.vm.id },
      { kind: 'vcpus-locked', source: 2, destination: 2 },
      { kind: 'checked' },
      { kind: 'vm-state', asid, handle, regions: 1, pinnedBytes: 3 * PAGE_SIZE, mirrors: 0 },
      { kind: 'vcpu', index: 0, saveAreaBytes: PAGE_SIZE },
      { kind: 'vcpu', index: 1, saveAreaBytes: PAGE_SIZE },
      { kind: 'policy', policy: 'VM_DEAD' },
      { kind: 'done' },
    ]);
  });
});

describe('a SEV-SNP guest', () => {
  const setup = (snpMove: 'refuse' | 'as_code') => {
    const { vmm, host } = createSevRig({ snpMove, sev: { ...DEFAULT_HOST_CONFIG.sev, snp: true } });
    const source = vmm.createGuest(0, VM_TYPE.SNP);
    vmm.must(vmm.command(source.fd, 'INIT2', kvm_sev_init.encode({})));
    return { vmm, host, source, destination: vmm.createGuest(0, VM_TYPE.SNP) };
  };

  it('is refused by default', () => {
    const { vmm, source, destination } = setup('refuse');
    expect(vmm.move(destination.fd, source.fd)).toMatchObject({ errno: 'EINVAL', reason: 'SNP_MOVE_UNSUPPORTED' });
    expect(source.vm.life.kind).toBe('alive');
  });

  it('moves where the host does as the code reads', () => {
    const { vmm, host, source, destination } = setup('as_code');
    // The pages of guest requests stay with the source, which forgets them.
    expectLeak(host.kernel, { frames: 2 });
    expect(vmm.tryMove(destination.fd, source.fd)).toBe(0);
    expect(toSevInfo(destination.vm)).toMatchObject({ active: true, needInit: true });
  });

  it('takes no command of the older kinds', () => {
    const { vmm, source } = setup('refuse');
    expect(vmm.command(source.fd, 'GUEST_STATUS').result).toBe('EPERM');
  });
});
