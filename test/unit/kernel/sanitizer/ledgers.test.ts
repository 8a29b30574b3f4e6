import { describe, expect, it } from 'vitest';
import { AsidKeys } from '../../../../server/hardware/amd/asid-keys.js';
import { createMemoryEncryptionEngine } from '../../../../server/hardware/amd/memory-encryption.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { asid, PAGE_SIZE } from '../../../../server/hardware/units.js';
import { postMovePolicy } from '../../../../server/kernel/kvm/post-move/index.js';
import type { PostMovePolicyName } from '../../../../server/kernel/kvm/post-move/policy.js';
import { toSevInfo } from '../../../../server/kernel/kvm/svm/sev-info.js';
import { EncryptionContexts } from '../../../../server/kernel/sanitizer/encryption-contexts.js';
import { Findings } from '../../../../server/kernel/sanitizer/findings.js';
import { KVM_EXIT } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { createSevRig, type Guest, type SevRig, type Vmm } from '../kvm/svm/sev-rig.js';

const RAM = 16 * PAGE_SIZE;
const CODE = 0x1000;
/** `mov [0x2000], al; out 0x10, al; hlt; jmp -3`: a write through the guest's key, then an exit. */
const PROGRAM = Uint8Array.of(0xa2, 0x00, 0x20, 0xe6, 0x10, 0xf4, 0xeb, 0xfd);

const kinds = ({ host }: SevRig): string[] => host.kernel.findings.all.map(({ domain, kind }) => `${domain} ${kind}`);

const vcpuOf = ({ vcpus: [vcpu] }: Guest) => {
  if (vcpu === undefined) throw new Error('no vCPU');
  return vcpu;
};

/** A SEV guest that has run to its first exit. @param shared whether its RAM can be mapped by others */
const runningGuest = (vmm: Vmm, shared: boolean) => {
  const object = shared ? vmm.sharedMemory(RAM) : null;
  const address = vmm.map(object, RAM);
  const guest = vmm.createSevGuest();
  vmm.addSlot(guest, 0, 0, address, RAM);
  vmm.write(address + CODE, PROGRAM);
  vmm.must(vmm.updateData(guest, address, RAM));
  vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
  const { fd, vcpu } = vcpuOf(guest);
  vmm.startAt(fd, CODE);
  if (vmm.run(fd) !== 0 || vcpu.arch.run.exitReason !== KVM_EXIT.IO) throw new Error('the guest did not come to its OUT');
  // Completes the exit without entering again: nothing is in flight.
  vcpu.runPages.run.bytes[1] = 1;
  vmm.run(fd);
  vcpu.runPages.run.bytes[1] = 0;
  return { ...guest, object, address };
};

const exit = ({ host }: SevRig, vmm: Vmm): void => {
  host.kernel.exit(vmm.process.process);
  while (host.kernel.scheduler.run());
  host.kernel.sanitizer.callEnded();
};

/** Source in one process, destination in another, RAM shared; moved under a policy. */
const moved = (policy: PostMovePolicyName) => {
  const rig = createSevRig();
  const source = runningGuest(rig.vmm, true);
  source.vm.postMovePolicy = postMovePolicy(policy);
  const other = rig.spawn();
  const destination = other.createGuest(1);
  other.addSlot(destination, 0, 0, other.map(source.object, RAM), RAM);
  if (other.tryMove(destination.fd, rig.vmm.send(source.fd, other)) !== 0) throw new Error('not moved');
  return { rig, source, destination, other };
};

describe('control rows: no finding', () => {
  it('for a guest that is closed', () => {
    const rig = createSevRig();
    runningGuest(rig.vmm, false);
    rig.vmm.process.closeAll();
    rig.host.kernel.sanitizer.callEnded();
    expect(kinds(rig)).toEqual([]);
  });

  it('for a process that dies with a guest in it, and for its frames', () => {
    const rig = createSevRig();
    runningGuest(rig.vmm, false);
    exit(rig, rig.vmm);
    expect(kinds(rig)).toEqual([]);
  });

  it('for a VMM that unmaps the memory of a guest that lives', () => {
    const rig = createSevRig();
    const { address } = runningGuest(rig.vmm, false);
    rig.vmm.mm.munmap(address, RAM);
    expect(kinds(rig)).toEqual([]);
  });

  it('for a move after which the source only closes, whichever ends first', () => {
    for (const first of ['source', 'destination'] as const) {
      const { rig, other, destination, source } = moved('VM_DEAD');
      other.startAt(vcpuOf(destination).fd, Number(vcpuOf(source).vcpu.arch.state.rip));
      for (const vmm of first === 'source' ? [rig.vmm, other] : [other, rig.vmm]) exit(rig, vmm);
      expect(kinds(rig)).toEqual([]);
    }
  });
});

describe('frames', () => {
  it('freed with lines dirty under a key: the source of a move writes back nothing any more', () => {
    const rig = createSevRig();
    const source = runningGuest(rig.vmm, false);
    expect(rig.vmm.tryMove(rig.vmm.createGuest(0).fd, source.fd)).toBe(0);
    rig.vmm.mm.munmap(source.address, RAM);
    expect(new Set(kinds(rig))).toEqual(new Set(['kernel FRAME_FREED_WITHOUT_WRITEBACK']));
  });

  it('of a live guest that a zombie’s new vCPU reaches: an effect on the owner, in the call that caused it', () => {
    const { rig, source, destination } = moved('NOT_DEAD');
    const { fd } = rig.vmm.process.createVcpu(source.fd, 5);
    rig.vmm.startAt(fd, CODE);
    expect(kinds(rig)).toEqual([]);
    rig.vmm.process.ioctl(fd, IOCTL.KVM_RUN);
    const [finding] = rig.host.kernel.findings.all;
    expect(finding).toMatchObject({ domain: 'guest', kind: 'FOREIGN_READ', vm: source.vm.id });
    expect(finding?.message).toContain(`the guest in vm ${destination.vm.id}`);
    expect(finding?.call).toBe(`pid ${rig.vmm.process.process.pid}: KVM_RUN on vcpu 5 of vm ${source.vm.id}`);
    expect(finding?.history).toContain(`pid ${rig.vmm.process.process.pid}: KVM_CREATE_VCPU on vm ${source.vm.id}`);
  });

  it('of a live guest that somebody else maps, or unmaps, are no finding', () => {
    const { rig, source } = moved('NOT_DEAD');
    rig.vmm.addSlot(source, 1, 0x100000, source.address, RAM);
    rig.vmm.mm.munmap(source.address, RAM);
    expect(kinds(rig)).toEqual([]);
  });

  it('a vCPU that existed at the move reaches none: VMRUN fails', () => {
    const { rig, source } = moved('NOT_DEAD');
    expect(rig.vmm.run(vcpuOf(source).fd)).toBe(0);
    expect(vcpuOf(source).vcpu.arch.run.exitReason).toBe(KVM_EXIT.FAIL_ENTRY);
    expect(kinds(rig)).toEqual([]);
  });
});

describe('registers', () => {
  it('reported by a VM that was the guest’s owner are stale', () => {
    const { rig, source } = moved('NOT_DEAD');
    expect(rig.vmm.process.try(vcpuOf(source).fd, IOCTL.KVM_GET_REGS, new Uint8Array(144))).toBe(0);
    expect(kinds(rig)).toEqual(['guest STALE_REGISTERS_REPORTED']);
  });

  it('that a gate refuses to report, or does not write, are none', () => {
    for (const policy of ['VM_DEAD', 'SUCCEED_SILENTLY'] as const) {
      const { rig, source } = moved(policy);
      rig.vmm.process.try(vcpuOf(source).fd, IOCTL.KVM_GET_REGS, new Uint8Array(144));
      expect(kinds(rig)).toEqual([]);
    }
  });

  it('of a VM to which the guest has come back are the guest’s again', () => {
    const { rig, source, destination } = moved('NOT_DEAD');
    expect(rig.vmm.tryMove(source.fd, destination.vmm.send(destination.fd, rig.vmm))).toBe(0);
    rig.vmm.process.try(vcpuOf(source).fd, IOCTL.KVM_GET_REGS, new Uint8Array(144));
    expect(kinds(rig)).toEqual([]);
  });

  it('with which a moved guest goes on must be those that it had', () => {
    const { rig, destination, other, source } = moved('VM_DEAD');
    const { fd } = vcpuOf(destination);
    other.startAt(fd, CODE);
    other.run(fd);
    const [finding] = rig.host.kernel.findings.all;
    expect(finding).toMatchObject({ domain: 'guest', kind: 'REGISTERS_NOT_THE_GUESTS', vm: destination.vm.id });
    expect(finding?.message).toMatch(/rip/);
    expect(Number(vcpuOf(source).vcpu.arch.state.rip)).not.toBe(CODE);
  });
});

describe('encrypted registers', () => {
  const ask = (leak: boolean) => {
    const rig = createSevRig();
    const guest = rig.vmm.createSevGuest({ es: true });
    rig.vmm.must(rig.vmm.command(guest.fd, 'LAUNCH_UPDATE_VMSA'));
    const { fd, vcpu } = vcpuOf(guest);
    if (leak) Object.assign(rig.host.kernel.ops, { visibleState: () => vcpu.arch.cpu.state });
    rig.vmm.process.try(fd, IOCTL.KVM_GET_REGS, new Uint8Array(144));
    return kinds(rig);
  };

  it('that the kernel would show to userspace are a finding', () => {
    expect(ask(false)).toEqual([]);
    expect(ask(true)).toEqual(['guest PLAINTEXT_VISIBLE']);
  });
});

describe('registers in a chain of moves', () => {
  it('are those that the guest had when it last ran, whichever VM it passed through', () => {
    const { rig, source, destination, other } = moved('VM_DEAD');
    const last = other.createGuest(1);
    other.addSlot(last, 0, 0, other.map(source.object, RAM), RAM);
    expect(other.tryMove(last.fd, destination.fd)).toBe(0);
    other.startAt(vcpuOf(last).fd, Number(vcpuOf(source).vcpu.arch.state.rip));
    other.run(vcpuOf(last).fd);
    expect(kinds(rig)).toEqual([]);
  });
});

describe('ASIDs', () => {
  const setup = () => {
    const findings = new Findings();
    const keys = new AsidKeys({ count: 4, minSev: 1 }, 1);
    const key = createMemoryEncryptionEngine(createEntropy('ledger')).createKey('asid 1', new Uint8Array(16));
    return { findings, keys, key, contexts: new EncryptionContexts(findings, keys) };
  };

  it('are handed out again after their flush only', () => {
    const { findings, keys, key, contexts } = setup();
    contexts.asidAllocated(asid(1));
    keys.load(asid(1), key);
    contexts.asidAllocated(asid(1));
    keys.unload(asid(1));
    contexts.asidAllocated(asid(1));
    keys.wbinvd(0);
    keys.flushDataFabric();
    contexts.asidAllocated(asid(1));
    expect(findings.all.map(({ kind }) => kind)).toEqual(['ASID_REUSED_IN_USE', 'ASID_REUSED_WITHOUT_FLUSH']);
  });

  it('may be handed out for the first time between a shutdown of the platform and its next initialisation', () => {
    const { findings, keys, contexts } = setup();
    keys.invalidateUnused();
    contexts.asidAllocated(asid(1));
    expect(findings.all).toEqual([]);
  });

  it('have one owner, or a registered mirror of it', () => {
    const rig = createSevRig();
    const [owner, mirror, thief] = [rig.vmm.createSevGuest(), rig.vmm.createGuest(0), rig.vmm.createGuest(0)];
    rig.vmm.copy(mirror.fd, owner.fd);
    const { contexts } = rig.host.kernel.sanitizer;
    contexts.verify(rig.host.kernel.vms.values());
    expect(kinds(rig)).toEqual([]);
    const { asid: id, handle } = toSevInfo(owner.vm);
    const honest = { ...toSevInfo(thief.vm) };
    Object.assign(toSevInfo(thief.vm), { active: true, asid: id, handle });
    contexts.verify(rig.host.kernel.vms.values());
    Object.assign(toSevInfo(thief.vm), honest);
    expect(kinds(rig)).toEqual(['kernel ASID_TWO_OWNERS', 'guest TWO_RUNNABLE_COPIES']);
  });
});

describe('findings', () => {
  it('know the calls on their VM, and no more than a limited number', () => {
    const findings = new Findings();
    for (let index = 0; index < 5000; index++) findings.note({ vm: index % 2, describe: () => `call ${index}` });
    findings.report('kernel', 'TEST', 'about vm 1', 1);
    const [finding] = findings.all;
    expect(finding?.history).toHaveLength(64);
    expect([finding?.call, finding?.history.at(-1), finding?.history.at(-2)]).toEqual(['call 4999', 'call 4999', 'call 4997']);
  });

  it('beyond the limit are counted', () => {
    const findings = new Findings();
    for (let index = 0; index < 4100; index++) findings.report('guest', 'TEST', 'again');
    expect([findings.all.length, findings.dropped]).toEqual([4096, 4]);
  });
});
