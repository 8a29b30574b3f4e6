import { describe, expect, it } from 'vitest';
import { CPUID_ENTRY, CPUID_PAGE } from '../../../../../../server/hardware/amd/snp/cpuid-page.js';
import { asid, PAGE_SIZE } from '../../../../../../server/hardware/units.js';
import { failed } from '../../../../../../server/kernel/failure.js';
import { toSevInfo } from '../../../../../../server/kernel/kvm/svm/sev-info.js';
import { KVM_CAP } from '../../../../../../server/kernel/uapi/capabilities.js';
import { KVM_EXIT, KVM_X86_SEV } from '../../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../../server/kernel/uapi/ioctls.js';
import { kvm_pre_fault_memory } from '../../../../../../server/kernel/uapi/kvm-structs.js';
import {
  KVM_SEV_SNP_PAGE_TYPE,
  kvm_sev_init,
  kvm_sev_snp_launch_finish,
  kvm_sev_snp_launch_start,
  kvm_sev_snp_launch_update,
} from '../../../../../../server/kernel/uapi/sev-structs.js';
import { expectLeak } from '../../../../../helpers/leftovers.js';
import { RAM_BYTES } from '../es-guest.js';
import { createSevRig, ERROR_UNTOUCHED, type Vmm } from '../sev-rig.js';
import {
  createSnpGuest,
  createSnpHost,
  createSnpVm,
  FREE_GPA,
  launchUpdate,
  privateFrame,
  run,
  SNP,
  SNP_POLICY,
  setPrivate,
} from './snp-guest.js';

const start = (vmm: Vmm, fd: number, fields: { policy?: bigint; flags?: number } = {}) =>
  vmm.command(fd, 'SNP_LAUNCH_START', kvm_sev_snp_launch_start.encode({ policy: SNP_POLICY, ...fields }));
const finish = (vmm: Vmm, fd: number, fields: { flags?: number; id_block_en?: number; id_block_uaddr?: bigint } = {}) =>
  vmm.command(fd, 'SNP_LAUNCH_FINISH', kvm_sev_snp_launch_finish.encode(fields));

const launching = () => {
  const rig = createSnpHost();
  const vm = createSnpVm(rig.vmm);
  rig.vmm.must(start(rig.vmm, vm.fd));
  setPrivate(rig.vmm, vm.fd, 0, RAM_BYTES);
  return { ...rig, ...vm };
};

describe('a VM of type SNP', () => {
  it('exists where CPUID has the bit, and only there', () => {
    const types = ({ vmm }: { vmm: Vmm }): number | string =>
      vmm.process.try(vmm.process.openKvm(), IOCTL.KVM_CHECK_EXTENSION, KVM_CAP.VM_TYPES);
    expect(Number(types(createSnpHost())) & (1 << SNP)).toBe(1 << SNP);
    const without = createSevRig();
    expect(Number(types(without)) & (1 << SNP)).toBe(0);
    expect(without.vmm.process.try(without.vmm.process.openKvm(), IOCTL.KVM_CREATE_VM, SNP)).toBe('EINVAL');
  });

  it('cannot run before KVM_SEV_INIT2, which brings the platform up', () => {
    const { vmm, host } = createSnpHost();
    const { fd } = vmm.process.createVm(SNP);
    expect(vmm.command(fd, 'INIT2', kvm_sev_init.encode({ ghcb_version: 1 })).result).toBe('EINVAL');
    expect(vmm.command(fd, 'INIT2', kvm_sev_init.encode({ vmsa_features: 1n })).result).toBe('EINVAL');
    expect(vmm.command(fd, 'INIT2', kvm_sev_init.encode({})).result).toBe(0);
    expect(host.kernel.amd?.processor.snpState).toBe('init');
    expect(vmm.command(fd, 'LAUNCH_FINISH').result).toBe('EPERM');
  });
});

describe('KVM_SEV_SNP_LAUNCH_START', () => {
  it('is for SNP guests', () => {
    const { vmm } = createSnpHost();
    const { fd } = vmm.createSevGuest();
    expect(start(vmm, fd).result).toBe('ENOTTY');
  });

  it.each([
    ['flags', { flags: 1 }],
    ['a policy without the bit that must be one', { policy: 0x10000n }],
    ['a migration agent', { policy: SNP_POLICY | (1n << 18n) }],
    ['AES-256-XTS', { policy: SNP_POLICY | (1n << 22n) }],
  ])('refuses %s before it asks the firmware', (_, fields) => {
    const { vmm } = createSnpHost();
    const { fd } = createSnpVm(vmm);
    expect(start(vmm, fd, fields)).toMatchObject({ result: 'EINVAL', error: ERROR_UNTOUCHED });
  });

  it('takes the policy bits that both KVM and the firmware know, and says which those are', () => {
    const { vmm, host } = createSnpHost();
    const { fd } = createSnpVm(vmm);
    expect(host.kernel.ops.sevAttribute?.(KVM_X86_SEV.SNP_POLICY_BITS)).toBe(0x3b_ffffn);
    expect(start(vmm, fd, { policy: SNP_POLICY | (1n << 21n) })).toMatchObject({ result: 0, error: 0 });
  });

  it('makes one context, bound to the VM’s ASID', () => {
    const { vmm, host } = createSnpHost();
    const { fd, vm } = createSnpVm(vmm);
    expect(start(vmm, fd)).toMatchObject({ result: 0, error: 0 });
    expect(start(vmm, fd)).toMatchObject({ result: 'EINVAL', failure: { reason: 'SNP_CONTEXT_EXISTS' } });
    expect(host.kernel.amd?.processor.snpGuests()).toMatchObject([
      { policy: SNP_POLICY, state: 'launch', asid: toSevInfo(vm).asid },
    ]);
  });

  it('leaves nothing behind where the firmware refuses the policy', () => {
    const { vmm, host } = createSnpHost();
    const { fd } = createSnpVm(vmm);
    // The firmware has SMT on; version 0xff.0xff it does not have.
    expect(start(vmm, fd, { policy: SNP_POLICY | 0xffffn })).toMatchObject({ result: 'EIO', error: 7 });
    expect(host.kernel.amd?.processor.snpGuests()).toEqual([]);
    expect(start(vmm, fd).result).toBe(0);
  });

  it('wants /dev/sev: without it there is no context', () => {
    const { vmm } = createSnpHost();
    const { fd } = createSnpVm(vmm);
    const answer = vmm.command(fd, 'SNP_LAUNCH_START', kvm_sev_snp_launch_start.encode({ policy: SNP_POLICY }), 999);
    expect(answer.result).toBe('ENOTTY');
  });
});

describe('KVM_SEV_SNP_LAUNCH_UPDATE', () => {
  it('checks its arguments in the kernel’s order', () => {
    const { vmm, fd, address } = launching();
    const update = (fields: Record<string, number | bigint>) =>
      vmm.command(
        fd,
        'SNP_LAUNCH_UPDATE',
        kvm_sev_snp_launch_update.encode({ len: 4096n, uaddr: BigInt(address), type: 1, ...fields }),
      ).failure?.reason;
    expect(update({ len: 0n })).toBe('SNP_UPDATE_LENGTH');
    expect(update({ len: 100n })).toBe('SNP_UPDATE_LENGTH');
    expect(update({ flags: 1 })).toBe('SNP_UPDATE_FLAGS');
    expect(update({ type: 2 })).toBe('SNP_UPDATE_TYPE');
    expect(update({ uaddr: BigInt(address + 1) })).toBe('SNP_UPDATE_ADDRESS');
    expect(update({ gfn_start: 0x1000n })).toBe('SNP_UPDATE_NO_GUEST_MEMFD');
    expect(update({ gfn_start: 2n ** 60n })).toBe('SNP_UPDATE_NO_GUEST_MEMFD');
    expect(update({ uaddr: 0n })).toBe('BAD_ADDRESS');
    expect(update({})).toBeUndefined();
  });

  it('needs a context', () => {
    const { vmm } = createSnpHost();
    const { fd, address } = createSnpVm(vmm);
    expect(launchUpdate(vmm, fd, 0, address, PAGE_SIZE).result).toBe('EINVAL');
  });

  it('gives pages to the guest; the host keeps ciphertext', () => {
    const { vmm, fd, vm, address, host } = launching();
    const contents = new Uint8Array(PAGE_SIZE).fill(0xab);
    vmm.write(address, contents);
    vmm.must(launchUpdate(vmm, fd, FREE_GPA, address, PAGE_SIZE));
    const frame = privateFrame({ vm, fd, vmm, vcpus: [] }, FREE_GPA);
    expect(host.kernel.amd?.rmp.entry(frame.pfn)).toMatchObject({ validated: true, asid: toSevInfo(vm).asid, gpa: FREE_GPA });
    expect([...frame.view(null).subarray(0, 16)]).not.toEqual([...contents.subarray(0, 16)]);
  });

  it('is EIO for a page that is shared, and for one that the guest has already', () => {
    const { vmm, fd, address } = launching();
    setPrivate(vmm, fd, FREE_GPA, PAGE_SIZE, false);
    expect(launchUpdate(vmm, fd, FREE_GPA, address, PAGE_SIZE)).toMatchObject({
      ...{ result: 'EIO', error: 0, failure: { reason: 'PAGE_NOT_PRIVATE' } },
    });
    vmm.must(launchUpdate(vmm, fd, 0, address, PAGE_SIZE));
    expect(launchUpdate(vmm, fd, 0, address, PAGE_SIZE)).toMatchObject({
      ...{ result: 'EIO', failure: { reason: 'PAGE_ALREADY_ASSIGNED' } },
    });
  });

  it('that stops on its way says what is left to do', () => {
    const { vmm, fd, address } = launching();
    vmm.must(launchUpdate(vmm, fd, 0x3000, address, PAGE_SIZE));
    const answer = launchUpdate(vmm, fd, 0x1000, address, 4 * PAGE_SIZE);
    expect(answer.result).toBe(0);
    expect(kvm_sev_snp_launch_update.decode(answer.data)).toMatchObject({
      ...{ gfn_start: 3n, len: 0x2000n, uaddr: BigInt(address + 0x2000) },
    });
  });

  it('gives back a CPUID page that the firmware refuses, as it would accept it; the guest does not get it', () => {
    const { vmm, fd, vm, address, host } = launching();
    const page = new Uint8Array(PAGE_SIZE);
    CPUID_PAGE.count.set(page, 1);
    const entry = page.subarray(CPUID_PAGE.size, CPUID_PAGE.size + CPUID_ENTRY.size);
    CPUID_ENTRY.eaxIn.set(entry, 0x8000_001f);
    CPUID_ENTRY.eax.set(entry, 0xffff_ffff);
    CPUID_ENTRY.ebx.set(entry, 51);
    vmm.write(address, page);
    const refused = launchUpdate(vmm, fd, FREE_GPA, address, PAGE_SIZE, KVM_SEV_SNP_PAGE_TYPE.CPUID);
    expect(refused).toMatchObject({ result: 'EIO', error: 0x16 });
    expect(host.kernel.amd?.rmp.state(privateFrame({ vm, fd, vmm, vcpus: [] }, FREE_GPA).pfn)).toBe('hypervisor');
    expect(launchUpdate(vmm, fd, FREE_GPA, address, PAGE_SIZE, KVM_SEV_SNP_PAGE_TYPE.CPUID).result).toBe(0);
  });
});

describe('KVM_SEV_SNP_LAUNCH_FINISH', () => {
  it('checks in the kernel’s order', () => {
    const { vmm } = createSnpHost();
    const { fd } = vmm.createSevGuest();
    expect(finish(vmm, fd).result).toBe('ENOTTY');
    const snp = createSnpVm(vmm);
    expect(finish(vmm, snp.fd).failure?.reason).toBe('NO_SNP_CONTEXT');
    vmm.must(start(vmm, snp.fd));
    expect(finish(vmm, snp.fd, { flags: 1 }).failure?.reason).toBe('SNP_LAUNCH_FLAGS');
    expect(finish(vmm, snp.fd, { id_block_en: 1 }).result).toBe('EINVAL');
    expect(finish(vmm, snp.fd, { id_block_en: 1, id_block_uaddr: 0x1000n }).result).toBe('EFAULT');
    expect(finish(vmm, snp.fd).result).toBe(0);
    expect(finish(vmm, snp.fd)).toMatchObject({ result: 'EIO', error: 2 });
  });

  it('encrypts the save areas: from then on the registers are the guest’s', () => {
    const { vmm, host } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: [], vcpus: 2 });
    for (const { vcpu } of guest.vcpus) {
      const page = vcpu.arch.svm?.vmcb.vmsa;
      expect(host.kernel.amd?.rmp.entry(page?.frame.pfn ?? privateFrame(guest, 0).pfn)).toMatchObject({
        vmsa: true,
        validated: true,
      });
      expect(host.kernel.ops.guestStateProtected(vcpu)).toBe(true);
    }
  });

  it('comes before the first run, and before memory may be mapped ahead', () => {
    const { vmm } = createSnpHost();
    const { fd } = createSnpVm(vmm);
    const { fd: vcpuFd, vcpu } = vmm.process.createVcpu(fd);
    const range = kvm_pre_fault_memory.encode({ gpa: 0n, size: 4096n });
    expect(vmm.process.try(vcpuFd, IOCTL.KVM_PRE_FAULT_MEMORY, range)).toBe('EOPNOTSUPP');
    vmm.must(start(vmm, fd));
    expect(vmm.run(vcpuFd)).toBe(0);
    expect(vcpu.arch.run.exitReason).toBe(KVM_EXIT.FAIL_ENTRY);
    vmm.must(finish(vmm, fd));
    setPrivate(vmm, fd, 0, PAGE_SIZE);
    expect(vmm.process.try(vcpuFd, IOCTL.KVM_PRE_FAULT_MEMORY, range)).toBe(0);
  });
});

describe('KVM_SEV_SNP_ENABLE_REQ_CERTS', () => {
  it('is for SNP guests without vCPUs', () => {
    const { vmm } = createSnpHost();
    expect(vmm.command(vmm.createSevGuest({ vcpus: 0 }).fd, 'SNP_ENABLE_REQ_CERTS').result).toBe('EINVAL');
    const { fd } = createSnpVm(vmm);
    expect(vmm.command(fd, 'SNP_ENABLE_REQ_CERTS').result).toBe(0);
    vmm.process.createVcpu(fd);
    expect(vmm.command(fd, 'SNP_ENABLE_REQ_CERTS').result).toBe('EINVAL');
  });
});

describe('the end of an SNP guest', () => {
  it('gives every page, the context and the ASID back', () => {
    const { vmm, host } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: [] });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    vmm.process.closeAll();
    expect(host.kernel.amd?.processor.snpGuests()).toEqual([]);
    expect([...(host.kernel.amd?.rmp.pages() ?? [])]).toEqual([]);
    expect(host.kernel.ops.asidsToReclaim?.()).toBe(1);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('whose context cannot be decommissioned leaks the ASID with it', () => {
    const { vmm, host } = createSnpHost();
    const guest = createSnpVm(vmm);
    vmm.must(start(vmm, guest.fd));
    // Behind the kernel's back the firmware forgets the guest.
    host.kernel.psp?.snp?.shutdown();
    expectLeak(host.kernel, { frames: 1 });
    vmm.process.closeAll();
    expect(host.kernel.ops.asidsToReclaim?.()).toBe(0);
    expect(host.kernel.amd?.asidKeys.keyOf(asid(1))).toBeNull();
  });
});

describe('a move of an SNP guest as the code reads', () => {
  it('leaves the context behind: the guest is lost, and the ASID is freed while it is bound', () => {
    const { vmm, host } = createSnpHost({ snpMove: 'as_code' });
    expectLeak(host.kernel, { frames: 3, 'contexts of the secure processor': 1 });
    const source = createSnpGuest(vmm, { code: [] });
    const destination = vmm.createGuest(1, SNP);
    const moved = vmm.move(destination.fd, source.fd);
    expect(failed(moved)).toBe(false);
    expect(toSevInfo(source.vm).snpContext).not.toBeNull();
    expect(toSevInfo(destination.vm).snpContext).toBeNull();
    // INIT2 has not run on the destination, and cannot any more.
    expect(vmm.run(destination.vcpus[0]?.fd ?? -1)).toBe('EINVAL');
    vmm.process.closeAll();
    host.kernel.sanitizer.callEnded();
    const kinds = host.kernel.findings.all.map(({ domain, kind }) => `${domain} ${kind}`);
    expect(kinds).toContain('kernel ASID_FREED_WHILE_BOUND');
    expect(kinds).toContain('kernel FIRMWARE_CONTEXT_LEAKED');
    expect(kinds).toContain('kernel KMEM_LEAKED');
  });

  it('is refused by default', () => {
    const { vmm } = createSnpHost();
    const source = createSnpGuest(vmm, { code: [] });
    expect(vmm.tryMove(vmm.createGuest(1, SNP).fd, source.fd)).toBe('EINVAL');
    expect(run(source)).toBe(KVM_EXIT.HLT);
  });
});
