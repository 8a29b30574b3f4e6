import { describe, expect, it } from 'vitest';
import { SEV_CERTIFICATE } from '../../../../server/hardware/amd/certificates.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../../../server/kernel/config.js';
import type { InitExFile } from '../../../../server/kernel/drivers/ccp/init-ex.js';
import type { Errno } from '../../../../server/kernel/errno.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { SEV_USER_CMD, sev_issue_cmd, sev_user_data_pdh_cert_export } from '../../../../server/kernel/uapi/sev-structs.js';
import { Vmm } from '../kvm/svm/sev-rig.js';
import { createTestHost } from '../kvm/test-host.js';

const NV_LENGTH = 0x8000;
const INVALID_PLATFORM_STATE = 1;

/** A file in memory, with the errno that opening it gives. */
class MemoryFile implements InitExFile {
  readonly path = '/var/lib/sev/nv';
  cannotRead: Errno | null = null;
  cannotWrite: Errno | null = null;
  reads = 0;
  writes = 0;

  constructor(public contents: Uint8Array | null = null) {}

  read(length: number): Uint8Array | Errno {
    this.reads++;
    return this.cannotRead ?? this.contents?.subarray(0, length) ?? 'ENOENT';
  }

  write(bytes: Uint8Array): Errno | null {
    if (this.cannotWrite !== null) return this.cannotWrite;
    this.writes++;
    const behind = this.contents?.subarray(bytes.length) ?? new Uint8Array(0);
    this.contents = Uint8Array.from([...bytes, ...behind]);
    return null;
  }
}

/** A host that starts, with the file as it is. */
const start = (file: InitExFile, config: Partial<HostConfig> = {}) => {
  const host = createTestHost(config, undefined, undefined, { initExFile: file });
  const vmm = new Vmm(host);
  const page = vmm.map(null, PAGE_SIZE);
  const issue = (cmd: number, data: Uint8Array = new Uint8Array(0)) => {
    vmm.write(page + 64, data);
    vmm.write(page, sev_issue_cmd.encode({ cmd, data: BigInt(page + 64), error: 77 }));
    const result = vmm.process.try(vmm.sevFd, IOCTL.SEV_ISSUE_CMD, page);
    return { result, error: sev_issue_cmd.decode(vmm.read(page, sev_issue_cmd.size)).error };
  };
  const blobs = vmm.map(null, 4 * PAGE_SIZE);
  const request = sev_user_data_pdh_cert_export.encode({
    pdh_cert_address: BigInt(blobs),
    pdh_cert_len: SEV_CERTIFICATE.size,
    cert_chain_address: BigInt(blobs + PAGE_SIZE),
    cert_chain_len: 3 * SEV_CERTIFICATE.size,
  });
  const certificates = (): string => {
    expect(issue(SEV_USER_CMD.PDH_CERT_EXPORT, request)).toEqual({ result: 0, error: 0 });
    const chain = vmm.read(blobs + PAGE_SIZE, 3 * SEV_CERTIFICATE.size);
    return Buffer.concat([vmm.read(blobs, SEV_CERTIFICATE.size), chain]).toString('hex');
  };
  return { host, vmm, issue, certificates };
};

describe('init_ex_path of the ccp driver', () => {
  it('keeps the identity of the platform from one start of the host to the next', () => {
    const file = new MemoryFile();
    const first = start(file);
    const original = first.certificates();
    first.issue(SEV_USER_CMD.PDH_GEN);
    const changed = first.certificates();
    expect(changed).not.toBe(original);
    expect(file.contents).toHaveLength(NV_LENGTH);
    expect(start(file).certificates()).toBe(changed);
    // Without the file the chip's own storage ends with the host.
    expect(start(new MemoryFile()).certificates()).toBe(original);
  });

  it('keeps it on a host with SEV-SNP too, where the buffer is the firmware’s', () => {
    const file = new MemoryFile();
    const snp = { sev: { ...DEFAULT_HOST_CONFIG.sev, snp: true } };
    const first = start(file, snp);
    first.issue(SEV_USER_CMD.PEK_GEN);
    const { vmm, issue } = first;
    vmm.createSevGuest();
    expect(issue(SEV_USER_CMD.PDH_GEN)).toEqual({ result: 0, error: 0 });
    const again = start(file, snp);
    expect(again.certificates()).toBe(first.certificates());
    // A platform that was shut down again has given its pages back.
    expect([...(again.host.kernel.amd?.rmp.pages() ?? [])]).toEqual([]);
  });

  it('reads the file once for each initialisation, and writes it after the commands that change what is stored', () => {
    const file = new MemoryFile();
    const { vmm, issue, certificates } = start(file);
    expect([file.reads, file.writes]).toEqual([0, 0]);
    // Nothing has been read yet that could be reset.
    issue(SEV_USER_CMD.FACTORY_RESET);
    expect([file.reads, file.writes]).toEqual([0, 0]);
    vmm.createSevGuest();
    expect([file.reads, file.writes]).toEqual([1, 1]);
    certificates();
    issue(SEV_USER_CMD.PLATFORM_STATUS);
    expect(file.writes).toBe(1);
    issue(SEV_USER_CMD.PDH_GEN);
    expect([file.reads, file.writes]).toEqual([1, 2]);
  });

  it('is left out by a host that has no such file', () => {
    const host = createTestHost();
    const vmm = new Vmm(host);
    vmm.createSevGuest();
    expect(host.kernel.costs.counts.get('psp_INIT')).toBe(1);
    expect(host.kernel.costs.counts.get('psp_INIT_EX')).toBeUndefined();
  });

  it.each([
    ['is missing', null],
    ['is empty', new Uint8Array(0)],
    ['is too short', new Uint8Array(NV_LENGTH - 1).fill(0xff)],
    [
      'is another host’s',
      (() => {
        const other = new MemoryFile();
        start(other, { seed: 'other' }).issue(SEV_USER_CMD.PDH_GEN);
        return other.contents;
      })(),
    ],
  ])('makes a new identity where the file %s: the firmware finds it damaged, and the second INIT_EX succeeds', (_, contents) => {
    const file = new MemoryFile(contents);
    const { host, certificates } = start(file);
    const identity = certificates();
    expect(host.kernel.costs.counts.get('psp_INIT_EX')).toBe(2);
    expect(file.contents).toHaveLength(NV_LENGTH);
    expect(start(file).certificates()).toBe(identity);
  });

  it('takes a file of 0xff for one in which nothing is yet, and leaves what is behind its part', () => {
    const file = new MemoryFile(new Uint8Array(NV_LENGTH + 5).fill(0xff));
    const { host, certificates } = start(file);
    certificates();
    expect(host.kernel.costs.counts.get('psp_INIT_EX')).toBe(1);
    expect(file.contents?.subarray(NV_LENGTH)).toEqual(new Uint8Array(5).fill(0xff));
  });

  it('fails once with the errno of a file that cannot be opened, and then goes on without it', () => {
    const file = new MemoryFile();
    file.cannotRead = 'EACCES';
    const { vmm, host, issue } = start(file);
    expect(issue(SEV_USER_CMD.PDH_GEN)).toEqual({ result: 'EACCES', error: INVALID_PLATFORM_STATE });
    expect(host.kernel.costs.counts.get('psp_INIT_EX')).toBeUndefined();
    vmm.createSevGuest();
    expect(file.reads).toBe(1);
  });

  it('KVM_SEV_INIT has that errno too', () => {
    const file = new MemoryFile();
    file.cannotRead = 'EACCES';
    const { vmm, host } = start(file);
    const { fd } = host.createVm();
    expect(vmm.command(fd, 'INIT')).toMatchObject({ result: 'EACCES', error: 0, failure: { reason: 'INIT_EX_FILE_NOT_OPENED' } });
  });

  it('fails with the errno of a file that cannot be written, although the firmware has done the command', () => {
    const file = new MemoryFile();
    const { vmm, issue, certificates } = start(file);
    vmm.createSevGuest();
    const before = certificates();
    file.cannotWrite = 'ENOSPC';
    expect(issue(SEV_USER_CMD.PDH_GEN)).toEqual({ result: 'ENOSPC', error: 0 });
    expect(certificates()).not.toBe(before);
    file.cannotWrite = null;
    expect(start(file).certificates()).toBe(before);
  });

  it('is stuck where INIT_EX was done and the file not written: the driver does not know the platform as initialised', () => {
    const file = new MemoryFile();
    file.cannotWrite = 'EROFS';
    const { host, issue } = start(file);
    expect(issue(SEV_USER_CMD.PDH_GEN)).toEqual({ result: 'EROFS', error: INVALID_PLATFORM_STATE });
    expect(host.kernel.amd?.processor.state).toBe('init');
    file.cannotWrite = null;
    expect(issue(SEV_USER_CMD.PDH_GEN)).toEqual({ result: 'EIO', error: INVALID_PLATFORM_STATE });
    expect(issue(SEV_USER_CMD.FACTORY_RESET)).toEqual({ result: 'EIO', error: INVALID_PLATFORM_STATE });
  });
});
