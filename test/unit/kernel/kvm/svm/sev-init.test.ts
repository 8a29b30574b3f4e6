import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../../../../server/kernel/config.js';
import { toSevInfo } from '../../../../../server/kernel/kvm/svm/sev-info.js';
import { VM_TYPE } from '../../../../../server/kernel/kvm/vm.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_sev_init } from '../../../../../server/kernel/uapi/sev-structs.js';
import { createSevRig, ERROR_UNTOUCHED } from './sev-rig.js';

const DEBUG_SWAP = 1n << 5n;

describe('KVM_MEMORY_ENCRYPT_OP', () => {
  it('answers 0 to a NULL argument: SEV is there', () => {
    const { vmm } = createSevRig();
    expect(vmm.process.try(vmm.createGuest(0).fd, IOCTL.KVM_MEMORY_ENCRYPT_OP, 0)).toBe(0);
  });

  it('is ENOTTY on a host with SEV switched off, also for NULL', () => {
    const { vmm } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, enabled: false } });
    const { fd } = vmm.createGuest(0);
    expect(vmm.process.try(fd, IOCTL.KVM_MEMORY_ENCRYPT_OP, 0)).toBe('ENOTTY');
    expect(vmm.command(fd, 'INIT').result).toBe('ENOTTY');
  });

  it('is EFAULT where the command cannot be read, and EINVAL for ids that nobody has, without a word in error', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createGuest(0);
    expect(vmm.process.try(fd, IOCTL.KVM_MEMORY_ENCRYPT_OP, 0x1000)).toBe('EFAULT');
    for (const id of [10, 14, 19, 23, 99, 104, 0xffff_ffff]) {
      const { result, error } = vmm.command(fd, id);
      expect([id, result, error]).toEqual([id, 'EINVAL', ERROR_UNTOUCHED]);
    }
  });

  it('wants a SEV guest: ENOTTY for all commands on a plain VM but RECEIVE_UPDATE_DATA, which is EINVAL', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createGuest(0);
    const commands = ['LAUNCH_START', 'LAUNCH_UPDATE_DATA', 'LAUNCH_UPDATE_VMSA', 'LAUNCH_SECRET', 'LAUNCH_MEASURE'] as const;
    const others = ['LAUNCH_FINISH', 'SEND_START', 'SEND_UPDATE_DATA', 'SEND_FINISH', 'SEND_CANCEL', 'RECEIVE_START'] as const;
    const rest = ['RECEIVE_FINISH', 'GUEST_STATUS', 'DBG_DECRYPT', 'DBG_ENCRYPT', 'GET_ATTESTATION_REPORT'] as const;
    for (const name of [...commands, ...others, ...rest]) expect([name, vmm.command(fd, name).result]).toEqual([name, 'ENOTTY']);
    expect(vmm.command(fd, 'RECEIVE_UPDATE_DATA').result).toBe('EINVAL');
  });
});

describe('KVM_SEV_INIT and KVM_SEV_ES_INIT', () => {
  it('make a default VM a guest of the class, once', () => {
    const { vmm } = createSevRig();
    const sev = vmm.createGuest(0);
    const es = vmm.createGuest(0);
    expect(vmm.command(sev.fd, 'INIT')).toMatchObject({ result: 0, error: 0 });
    expect(vmm.command(es.fd, 'ES_INIT').result).toBe(0);
    const { minSevAsid } = DEFAULT_HOST_CONFIG.sev;
    expect(toSevInfo(sev.vm)).toMatchObject({ active: true, esActive: false, asid: minSevAsid, ghcbVersion: 0 });
    expect(toSevInfo(es.vm)).toMatchObject({ active: true, esActive: true, asid: 1, ghcbVersion: 1 });
    for (const name of ['INIT', 'ES_INIT'] as const) expect(vmm.command(sev.fd, name).result).toBe('EINVAL');
  });

  it('refuse VMs of other types, and those that have vCPUs', () => {
    const { vmm } = createSevRig();
    for (const type of [VM_TYPE.SW_PROTECTED, VM_TYPE.SEV, VM_TYPE.SEV_ES])
      expect([type, vmm.command(vmm.createGuest(0, type).fd, 'INIT').result]).toEqual([type, 'EINVAL']);
    expect(vmm.command(vmm.createGuest(1).fd, 'INIT').failure?.reason).toBe('VCPUS_EXIST');
  });

  it('ENOTTY for SEV-ES where the host has none', () => {
    const { vmm } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, es: false } });
    expect(vmm.command(vmm.createGuest(0).fd, 'ES_INIT').failure).toMatchObject({
      errno: 'ENOTTY',
      reason: 'SEV_ES_NOT_ENABLED',
    });
  });

  it('EBUSY when the ASIDs are used up; a refused VM can be initialised later', () => {
    const { vmm } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, asids: 4, minSevAsid: 4 } });
    const [first, second] = [vmm.createGuest(0), vmm.createGuest(0)];
    expect(vmm.command(first.fd, 'INIT').result).toBe(0);
    expect(vmm.command(second.fd, 'INIT').result).toBe('EBUSY');
    expect(toSevInfo(second.vm)).toMatchObject({ active: false, asid: 0 });
    vmm.process.close(first.fd);
    expect(vmm.command(second.fd, 'INIT').result).toBe(0);
  });

  it('are charged to the misc cgroup of the caller until the VM is destroyed', () => {
    const { host, vmm } = createSevRig();
    const { miscCgroups } = host.kernel;
    const group = miscCgroups.create('vmms');
    miscCgroups.attach(host.process, group);
    group.max.sev = 1;
    const first = vmm.createGuest(0);
    expect(vmm.command(first.fd, 'INIT').result).toBe(0);
    expect(vmm.command(vmm.createGuest(0).fd, 'INIT').failure).toMatchObject({ errno: 'EBUSY', reason: 'MISC_CGROUP_LIMIT' });
    expect([group.current('sev'), miscCgroups.root.current('sev')]).toEqual([1, 1]);
    vmm.process.close(first.fd);
    expect([group.current('sev'), miscCgroups.root.current('sev')]).toEqual([0, 0]);
  });
});

describe('KVM_SEV_INIT2 (the assertions of sev_init2_tests)', () => {
  const init = (value: Partial<Parameters<typeof kvm_sev_init.encode>[0]> = {}) => kvm_sev_init.encode(value);

  it('takes a zeroed structure on VMs of the SEV types only', () => {
    const { vmm } = createSevRig();
    for (const type of [VM_TYPE.SEV, VM_TYPE.SEV_ES])
      expect(vmm.command(vmm.createGuest(0, type).fd, 'INIT2', init())).toMatchObject({ result: 0, error: 0 });
    for (const type of [VM_TYPE.DEFAULT, VM_TYPE.SW_PROTECTED])
      expect(vmm.command(vmm.createGuest(0, type).fd, 'INIT2', init()).result).toBe('EINVAL');
  });

  it('refuses every flag', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createGuest(0, VM_TYPE.SEV);
    for (let bit = 0; bit < 32; bit++)
      expect([bit, vmm.command(fd, 'INIT2', init({ flags: (1 << bit) >>> 0 })).result]).toEqual([bit, 'EINVAL']);
  });

  it('takes the features that the host supports, and on SEV-ES only', () => {
    const { vmm } = createSevRig();
    const sev = vmm.createGuest(0, VM_TYPE.SEV);
    const es = vmm.createGuest(0, VM_TYPE.SEV_ES);
    for (let bit = 0n; bit < 64n; bit++) {
      expect([bit, vmm.command(sev.fd, 'INIT2', init({ vmsa_features: 1n << bit })).result]).toEqual([bit, 'EINVAL']);
      if (1n << bit !== DEBUG_SWAP)
        expect([bit, vmm.command(es.fd, 'INIT2', init({ vmsa_features: 1n << bit })).result]).toEqual([bit, 'EINVAL']);
    }
    expect(vmm.command(es.fd, 'INIT2', init({ vmsa_features: DEBUG_SWAP })).result).toBe(0);
  });

  it('knows GHCB versions up to 2, takes 0 on SEV-ES as 2, and on plain SEV only 0', () => {
    const { vmm } = createSevRig();
    const es = vmm.createGuest(0, VM_TYPE.SEV_ES);
    expect(vmm.command(es.fd, 'INIT2', init({ ghcb_version: 3 })).result).toBe('EINVAL');
    expect(vmm.command(vmm.createGuest(0, VM_TYPE.SEV).fd, 'INIT2', init({ ghcb_version: 1 })).result).toBe('EINVAL');
    expect(vmm.command(es.fd, 'INIT2', init()).result).toBe(0);
    expect(toSevInfo(es.vm).ghcbVersion).toBe(2);
    expect(vmm.command(es.fd, 'INIT2', init()).failure?.reason).toBe('INIT2_NOT_EXPECTED');
  });

  it('must come before the first KVM_RUN of a VM of these types', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createGuest(0, VM_TYPE.SEV);
    expect(vmm.run(vmm.process.createVcpu(fd).fd)).toBe('EINVAL');
  });
});
