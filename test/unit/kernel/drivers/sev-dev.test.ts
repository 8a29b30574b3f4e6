import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { DEFAULT_HOST_CONFIG } from '../../../../server/kernel/config.js';
import { open } from '../../../../server/kernel/syscalls/descriptors.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import {
  SEV_USER_CMD,
  sev_issue_cmd,
  sev_user_data_get_id2,
  sev_user_data_pdh_cert_export,
  sev_user_data_pek_csr,
  sev_user_data_snp_config,
  sev_user_data_snp_status,
  sev_user_data_snp_vlek_load,
  sev_user_data_status,
} from '../../../../server/kernel/uapi/sev-structs.js';
import { createSevRig, type Vmm } from '../kvm/svm/sev-rig.js';

const RDONLY = 0;
/** What userspace has in `error` before the call. */
const UNTOUCHED = 77;
const INVALID_LENGTH = 4;

/** SEV_ISSUE_CMD, with the command's structure in the VMM's memory. */
const issue = (vmm: Vmm, fd: number, cmd: number, data: Uint8Array = new Uint8Array(0)) => {
  const page = vmm.map(null, PAGE_SIZE);
  vmm.write(page + 64, data);
  vmm.write(page, sev_issue_cmd.encode({ cmd, data: BigInt(page + 64), error: UNTOUCHED }));
  const result = vmm.process.try(fd, IOCTL.SEV_ISSUE_CMD, page);
  return { result, error: sev_issue_cmd.decode(vmm.read(page, sev_issue_cmd.size)).error, data: vmm.read(page + 64, 128) };
};

/** SEV_ISSUE_CMD without a structure of the command's own. */
const issueNull = (vmm: Vmm, cmd: number) => {
  const page = vmm.map(null, PAGE_SIZE);
  vmm.write(page, sev_issue_cmd.encode({ cmd }));
  return vmm.process.try(vmm.sevFd, IOCTL.SEV_ISSUE_CMD, page);
};

const readOnly = (vmm: Vmm): number =>
  vmm.process.must(vmm.process.call((current) => open(vmm.process.kernel, current, '/dev/sev', RDONLY)));

describe('/dev/sev', () => {
  it('EINVAL for other ioctls and for unknown commands', () => {
    const { vmm } = createSevRig();
    expect(vmm.process.try(vmm.sevFd, IOCTL.KVM_GET_API_VERSION)).toBe('EINVAL');
    expect(issue(vmm, vmm.sevFd, 99)).toMatchObject({ result: 'EINVAL', error: UNTOUCHED });
    expect(vmm.process.try(vmm.sevFd, IOCTL.SEV_ISSUE_CMD, 0x1000)).toBe('EFAULT');
  });

  it('reports the platform: uninitialised until the first guest, then with its guests', () => {
    const { vmm } = createSevRig();
    const status = () => sev_user_data_status.decode(issue(vmm, vmm.sevFd, SEV_USER_CMD.PLATFORM_STATUS).data);
    expect(status()).toMatchObject({ state: 0, guest_count: 0 });
    vmm.createSevGuest();
    expect(status()).toMatchObject({ state: 2, guest_count: 1 });
  });

  it('EPERM for what changes the platform on a descriptor that is open for reading', () => {
    const { vmm } = createSevRig();
    const fd = readOnly(vmm);
    for (const cmd of [SEV_USER_CMD.FACTORY_RESET, SEV_USER_CMD.PEK_GEN, SEV_USER_CMD.PDH_GEN, SEV_USER_CMD.PEK_CSR])
      expect([cmd, issue(vmm, fd, cmd, new Uint8Array(16))]).toMatchObject([cmd, { result: 'EPERM', error: UNTOUCHED }]);
    expect(issue(vmm, fd, SEV_USER_CMD.PLATFORM_STATUS).result).toBe(0);
    expect(issue(vmm, fd, SEV_USER_CMD.PDH_CERT_EXPORT, new Uint8Array(24))).toMatchObject({
      result: 'EPERM',
      error: UNTOUCHED,
    });
    const long = { pdh_cert_address: 0x1000n, pdh_cert_len: 2084, cert_chain_address: 0x1000n, cert_chain_len: 0x4001 };
    expect(issue(vmm, fd, SEV_USER_CMD.PDH_CERT_EXPORT, sev_user_data_pdh_cert_export.encode(long)).result).toBe('EFAULT');
    vmm.createSevGuest();
    expect(issue(vmm, fd, SEV_USER_CMD.PDH_CERT_EXPORT, new Uint8Array(24))).toMatchObject({
      result: 'EIO',
      error: INVALID_LENGTH,
    });
  });

  it('initialises for a key command, and shuts down again', () => {
    const { vmm, host } = createSevRig();
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.PDH_GEN)).toMatchObject({ result: 0, error: 0 });
    expect(host.kernel.amd?.processor.state).toBe('uninit');
  });

  it('EBUSY for a reset while there are guests', () => {
    const { vmm } = createSevRig();
    vmm.createSevGuest();
    // The kernel has asked the firmware for its state, successfully.
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.FACTORY_RESET)).toMatchObject({ result: 'EBUSY', error: 0 });
    vmm.process.closeAll();
    const { vmm: fresh } = createSevRig();
    expect(issue(fresh, fresh.sevFd, SEV_USER_CMD.FACTORY_RESET).result).toBe(0);
  });

  it('gives the lengths of certificates to who asks with none, and then the certificates', () => {
    const { vmm } = createSevRig();
    const pdh = vmm.map(null, PAGE_SIZE);
    const chain = vmm.map(null, 2 * PAGE_SIZE);
    const query = issue(vmm, vmm.sevFd, SEV_USER_CMD.PDH_CERT_EXPORT, new Uint8Array(24));
    expect(query).toMatchObject({ result: 'EIO', error: INVALID_LENGTH });
    const { pdh_cert_len, cert_chain_len } = sev_user_data_pdh_cert_export.decode(query.data);
    expect([pdh_cert_len, cert_chain_len]).toEqual([2084, 3 * 2084]);
    const addresses = { pdh_cert_address: BigInt(pdh), cert_chain_address: BigInt(chain) };
    const ask = sev_user_data_pdh_cert_export.encode({ ...addresses, pdh_cert_len, cert_chain_len });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.PDH_CERT_EXPORT, ask).result).toBe(0);
    expect(vmm.read(pdh, 2084).some((byte) => byte !== 0)).toBe(true);
    expect(vmm.read(chain + 2 * 2084, 2084).some((byte) => byte !== 0)).toBe(true);
    const long = sev_user_data_pek_csr.encode({ address: BigInt(pdh), length: 0x4001 });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.PEK_CSR, long).result).toBe('EFAULT');
  });

  it('gives the chip’s identity', () => {
    const { vmm } = createSevRig();
    const address = vmm.map(null, PAGE_SIZE);
    const query = issue(vmm, vmm.sevFd, SEV_USER_CMD.GET_ID2, new Uint8Array(12));
    expect(sev_user_data_get_id2.decode(query.data).length).toBe(64);
    const ask = sev_user_data_get_id2.encode({ address: BigInt(address), length: 64 });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.GET_ID2, ask).result).toBe(0);
    expect(vmm.read(address, 64)).toEqual(issue(vmm, vmm.sevFd, SEV_USER_CMD.GET_ID).data.subarray(0, 64));
  });

  it('writes as many identities to who asks the old way as there are, and leaves the rest', () => {
    const { vmm } = createSevRig();
    const { result, data } = issue(vmm, vmm.sevFd, SEV_USER_CMD.GET_ID, new Uint8Array(128).fill(0xee));
    expect(result).toBe(0);
    expect(data.subarray(64)).toEqual(new Uint8Array(64).fill(0xee));
  });

  it('says what the firmware has said also where its answer cannot be written', () => {
    const { vmm } = createSevRig();
    const page = vmm.map(null, PAGE_SIZE);
    vmm.write(page, sev_issue_cmd.encode({ cmd: SEV_USER_CMD.PLATFORM_STATUS, data: 0x1000n, error: UNTOUCHED }));
    expect(vmm.process.try(vmm.sevFd, IOCTL.SEV_ISSUE_CMD, page)).toBe('EFAULT');
    expect(sev_issue_cmd.decode(vmm.read(page, sev_issue_cmd.size)).error).toBe(0);
  });

  it('wants no certain length for an identity, but memory for it', () => {
    const { vmm } = createSevRig();
    const address = BigInt(vmm.map(null, PAGE_SIZE));
    const ask = (length: number) =>
      issue(vmm, vmm.sevFd, SEV_USER_CMD.GET_ID2, sev_user_data_get_id2.encode({ address, length }));
    expect(ask(0x10_0000)).toMatchObject({ result: 0, error: 0 });
    expect(ask(0x40_0001)).toMatchObject({ result: 'ENOMEM', error: UNTOUCHED });
    expect(ask(63)).toMatchObject({ result: 'EIO', error: INVALID_LENGTH });
  });
});

const SNP_HOST = { sev: { ...DEFAULT_HOST_CONFIG.sev, snp: true } };
const INVALID_PARAM = 0x16;
const INVALID_PLATFORM_STATE = 1;
const INVALID_CONFIG = 3;
const FEATURE_INFO_AVAILABLE = 8;

describe('/dev/sev on a host with SEV-SNP', () => {
  const snpStatus = (vmm: Vmm, fd = vmm.sevFd) => {
    const answer = issue(vmm, fd, SEV_USER_CMD.SNP_PLATFORM_STATUS);
    return { ...answer, status: sev_user_data_snp_status.decode(answer.data) };
  };

  it('reports the platform in every state, and keeps the page that the firmware has written to', () => {
    const { vmm, host } = createSevRig(SNP_HOST);
    host.kernel.psp?.snp?.shutdown();
    expect(snpStatus(vmm)).toMatchObject({ result: 0, error: 0, status: { state: 0, rmp_flags: 0, api_major: 1 } });
    expect(host.kernel.psp?.snp?.init()).toBeNull();
    for (let times = 0; times < 2; times++)
      expect(snpStatus(vmm, readOnly(vmm))).toMatchObject({ result: 0, status: { state: 1, rmp_flags: 1, guest_count: 0 } });
    expect([...(host.kernel.amd?.rmp.pages() ?? [])]).toEqual([]);
  });

  it('initialises SNP for a command, and shuts it down again', () => {
    const { vmm, host } = createSevRig(SNP_HOST);
    host.kernel.psp?.snp?.shutdown();
    expect(issue(vmm, readOnly(vmm), SEV_USER_CMD.SNP_COMMIT)).toMatchObject({ result: 0, error: 0 });
    expect(host.kernel.amd?.processor.snpState).toBe('uninit');
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.PDH_GEN)).toMatchObject({ result: 0, error: 0 });
  });

  it('initialises nothing where SNP was meant to be and cannot be', () => {
    const { vmm, host } = createSevRig(SNP_HOST);
    host.kernel.psp?.snp?.shutdown();
    host.kernel.amd?.snpMsrs.write(1, { enabled: false });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.PDH_GEN)).toMatchObject({ result: 'EIO', error: INVALID_PLATFORM_STATE });
    const { fd } = host.createVm();
    expect(vmm.command(fd, 'INIT')).toMatchObject({ result: 'EIO', error: INVALID_CONFIG });
    expect(host.kernel.amd?.processor.state).toBe('uninit');
  });

  it('asks the firmware at probe for what it has: a policy may have the bits that it knows, and a shutdown is whole', () => {
    const { host } = createSevRig(SNP_HOST);
    expect(host.kernel.costs.counts.get('psp_SNP_FEATURE_INFO')).toBe(1);
    const base = 0x1f_ffffn;
    const cxl = 1n << 21n;
    expect(host.kernel.psp?.snp?.policyBits()).toBe(base | cxl);
    host.kernel.psp?.snp?.shutdown();
    expect(host.kernel.amd?.rmp.isActive).toBe(false);
  });

  it('leaves SNP initialised where it was', () => {
    const { vmm, host } = createSevRig(SNP_HOST);
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.SNP_COMMIT)).toMatchObject({ result: 0, error: 0 });
    expect(host.kernel.amd?.processor.snpState).toBe('init');
  });

  it('configures what reports say; the firmware looks at the reserved bytes', () => {
    const { vmm } = createSevRig(SNP_HOST);
    const config = sev_user_data_snp_config.encode({ flags: 1 });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.SNP_SET_CONFIG, config)).toMatchObject({ result: 0, error: 0 });
    expect(snpStatus(vmm).status.flags).toBe(1 | FEATURE_INFO_AVAILABLE);
    config[63] = 1;
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.SNP_SET_CONFIG, config)).toMatchObject({ result: 'EIO', error: INVALID_PARAM });
    const future = sev_user_data_snp_config.encode({ reported_tcb: 0xff00_0000_0000_0000n });
    expect(issue(vmm, vmm.sevFd, SEV_USER_CMD.SNP_SET_CONFIG, future)).toMatchObject({ result: 'EIO', error: INVALID_PARAM });
  });

  it('loads a VLEK that was wrapped for this chip', () => {
    const { vmm, host } = createSevRig(SNP_HOST);
    const address = vmm.map(null, PAGE_SIZE);
    const { wrapped } = host.kernel.amd?.processor.orderVlek('provider') ?? { wrapped: new Uint8Array(0) };
    const load = (fields: { len?: number; vlek_wrapped_version?: number; vlek_wrapped_address?: bigint }) => {
      const data = { len: 16, vlek_wrapped_address: BigInt(address), ...fields };
      return issue(vmm, vmm.sevFd, SEV_USER_CMD.SNP_VLEK_LOAD, sev_user_data_snp_vlek_load.encode(data));
    };
    vmm.write(address, wrapped);
    expect(load({ len: 15 })).toMatchObject({ result: 'EINVAL', error: UNTOUCHED });
    expect(load({ vlek_wrapped_version: 1 })).toMatchObject({ result: 'EINVAL', error: UNTOUCHED });
    expect(load({ vlek_wrapped_address: 0n })).toMatchObject({ result: 'EINVAL', error: UNTOUCHED });
    expect(load({ vlek_wrapped_address: 0x1000n })).toMatchObject({ result: 'EFAULT', error: UNTOUCHED });
    expect(load({})).toMatchObject({ result: 0, error: 0 });
    expect(snpStatus(vmm).status.flags).toBe(4 | FEATURE_INFO_AVAILABLE);
    vmm.write(address + 100, Uint8Array.of(0xee));
    expect(load({}).result).toBe('EIO');
  });

  it('EPERM and EINVAL before anything is issued', () => {
    const { vmm } = createSevRig(SNP_HOST);
    const fd = readOnly(vmm);
    for (const cmd of [SEV_USER_CMD.SNP_SET_CONFIG, SEV_USER_CMD.SNP_VLEK_LOAD]) {
      expect([cmd, issue(vmm, fd, cmd, new Uint8Array(64))]).toMatchObject([cmd, { result: 'EPERM', error: UNTOUCHED }]);
      expect([cmd, issueNull(vmm, cmd)]).toEqual([cmd, 'EINVAL']);
    }
    expect(issueNull(vmm, SEV_USER_CMD.SNP_PLATFORM_STATUS)).toBe('EINVAL');
  });

  it('ENODEV on a host without SEV-SNP, which its status does not need', () => {
    const { vmm } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, snp: false } });
    expect(snpStatus(vmm)).toMatchObject({ result: 0, status: { state: 0 } });
    for (const cmd of [SEV_USER_CMD.SNP_COMMIT, SEV_USER_CMD.SNP_SET_CONFIG])
      expect([cmd, issue(vmm, vmm.sevFd, cmd, new Uint8Array(64))]).toMatchObject([
        cmd,
        { result: 'ENODEV', error: INVALID_PLATFORM_STATE },
      ]);
  });
});
