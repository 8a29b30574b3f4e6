import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { toSevInfo } from '../../../../../server/kernel/kvm/svm/sev-info.js';
import { KVM_EXIT } from '../../../../../server/kernel/uapi/constants.js';
import {
  kvm_sev_attestation_report,
  kvm_sev_dbg,
  kvm_sev_launch_measure,
  kvm_sev_launch_secret,
  kvm_sev_launch_start,
} from '../../../../../server/kernel/uapi/sev-structs.js';
import { createSevRig, OUT_AND_HALT, type Vmm } from './sev-rig.js';

const INVALID_LENGTH = 4;
const POLICY_FAILURE = 7;
const LAUNCHING = 1;
const SECRET = 2;
const RUNNING = 3;

const measure = (vmm: Vmm, fd: number, uaddr: number, len: number) => {
  const answer = vmm.command(fd, 'LAUNCH_MEASURE', kvm_sev_launch_measure.encode({ uaddr: BigInt(uaddr), len }));
  return { ...answer, len: kvm_sev_launch_measure.decode(answer.data).len };
};

describe('the launch of a SEV guest', () => {
  it('goes through the states that the firmware reports', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, PAGE_SIZE);
    vmm.must(vmm.updateData(guest, ram, PAGE_SIZE));
    expect(vmm.status(guest)).toMatchObject({ result: 0, handle: toSevInfo(guest.vm).handle, state: LAUNCHING });
    vmm.must(measure(vmm, guest.fd, vmm.map(null, PAGE_SIZE), 48));
    expect(vmm.status(guest).state).toBe(SECRET);
    vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
    expect(vmm.status(guest).state).toBe(RUNNING);
  });

  it('encrypts the VMM’s memory in place, whatever its alignment to pages, and unpins it', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, 4 * PAGE_SIZE);
    const plain = Uint8Array.from({ length: 4 * PAGE_SIZE }, (_, index) => index % 251);
    vmm.write(ram, plain);
    vmm.must(vmm.updateData(guest, ram + 16, 2 * PAGE_SIZE));
    const seen = vmm.read(ram, plain.length);
    expect(seen.subarray(0, 16)).toEqual(plain.subarray(0, 16));
    expect(seen.subarray(16 + 2 * PAGE_SIZE)).toEqual(plain.subarray(16 + 2 * PAGE_SIZE));
    for (const offset of [16, PAGE_SIZE, 2 * PAGE_SIZE])
      expect(seen.subarray(offset, offset + 16)).not.toEqual(plain.subarray(offset, offset + 16));
    expect(toSevInfo(guest.vm).pagesLocked).toBe(0);
  });

  it('runs what was encrypted, which the host cannot read', () => {
    const { vmm, host } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, 16 * PAGE_SIZE);
    vmm.addSlot(guest, 0, 0, ram, 16 * PAGE_SIZE);
    vmm.write(ram + 0x1000, OUT_AND_HALT(0x10));
    vmm.must(vmm.updateData(guest, ram + 0x1000, PAGE_SIZE));
    vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
    const [vcpu] = guest.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    vmm.startAt(vcpu.fd, 0x1000);
    expect(vmm.run(vcpu.fd)).toBe(0);
    expect(vcpu.vcpu.arch.run.exitReason).toBe(KVM_EXIT.IO);
    expect(vmm.read(ram + 0x1000, 5)).not.toEqual(OUT_AND_HALT(0x10));
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('takes old ciphertext that the host puts back: memory has neither integrity nor freshness', () => {
    const { vmm, host } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, 16 * PAGE_SIZE);
    vmm.addSlot(guest, 0, 0, ram, 16 * PAGE_SIZE);
    // inc byte [0x2000]; mov al, [0x2000]; out 0x10, al; jmp
    vmm.write(ram + 0x1000, Uint8Array.of(0xfe, 0x06, 0x00, 0x20, 0xa0, 0x00, 0x20, 0xe6, 0x10, 0xeb, 0xf5));
    vmm.must(vmm.updateData(guest, ram + 0x1000, 2 * PAGE_SIZE));
    vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
    const [vcpu] = guest.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    vmm.startAt(vcpu.fd, 0x1000);
    const next = (): number | undefined => {
      expect([vmm.run(vcpu.fd), vcpu.vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.IO]);
      return vcpu.vcpu.arch.run.pio[0];
    };
    expect(next()).toBe(1);
    const old = vmm.read(ram + 0x2000, PAGE_SIZE).slice();
    expect([next(), next()]).toEqual([2, 3]);
    vmm.write(ram + 0x2000, old);
    expect(next()).toBe(2);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('EINVAL for a length of 0 and a range that wraps, EFAULT where nothing is mapped, ENOMEM where a part is missing', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, PAGE_SIZE);
    expect(vmm.updateData(guest, ram, 0).result).toBe('EINVAL');
    expect(vmm.updateData(guest, ram, 2 ** 32 - 16).result).toBe('ENOMEM');
    expect(vmm.updateData(guest, 0x5000, 16).result).toBe('EFAULT');
    expect(toSevInfo(guest.vm).pagesLocked).toBe(0);
  });

  it('EBADF when sev_fd is closed or is no /dev/sev', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.process.createVm();
    vmm.must(vmm.command(fd, 'INIT'));
    const start = kvm_sev_launch_start.encode({ policy: 0 });
    expect(vmm.command(fd, 'LAUNCH_START', start, 999).failure?.reason).toBe('SEV_FD_NOT_OPEN');
    expect(vmm.command(fd, 'LAUNCH_START', start, fd).failure).toMatchObject({ errno: 'EBADF', reason: 'SEV_FD_NOT_DEV_SEV' });
    vmm.must(vmm.command(fd, 'LAUNCH_START', start));
    vmm.process.close(vmm.sevFd);
    expect(vmm.status({ fd })).toMatchObject({ result: 'EBADF' });
  });

  it('gives the length of the measurement to who asks with length 0', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    expect(measure(vmm, guest.fd, 0, 0)).toMatchObject({ result: 'EIO', error: INVALID_LENGTH, len: 48 });
    expect(vmm.status(guest).state).toBe(LAUNCHING);
    expect(measure(vmm, guest.fd, vmm.map(null, PAGE_SIZE), 0x4001).result).toBe('EINVAL');
    expect(measure(vmm, guest.fd, 0x5000, 48).result).toBe('EFAULT');
  });

  it('fills the whole of a buffer that is longer than what it asks for', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const room = 1024;
    const uaddr = vmm.map(null, PAGE_SIZE);
    vmm.write(uaddr, new Uint8Array(room).fill(0xee));
    const request = { mnonce: new Uint8Array(16), uaddr: BigInt(uaddr), len: room };
    vmm.must(vmm.command(guest.fd, 'GET_ATTESTATION_REPORT', kvm_sev_attestation_report.encode(request)));
    expect(vmm.read(uaddr, room).subarray(208)).toEqual(new Uint8Array(room - 208));
    vmm.write(uaddr, new Uint8Array(room).fill(0xee));
    expect(vmm.must(measure(vmm, guest.fd, uaddr, room))).toMatchObject({ len: 48 });
    expect(vmm.read(uaddr, room).subarray(48)).toEqual(new Uint8Array(room - 48));
  });

  it('EINVAL for a secret of which the header or the data are missing', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const uaddr = BigInt(vmm.map(null, PAGE_SIZE));
    const secret = { hdr_uaddr: uaddr, hdr_len: 52, guest_uaddr: uaddr, guest_len: 16, trans_uaddr: uaddr, trans_len: 16 };
    const inject = (change: object) => {
      const request = kvm_sev_launch_secret.encode({ ...secret, ...change });
      return vmm.command(guest.fd, 'LAUNCH_SECRET', request).failure?.reason;
    };
    expect(inject({ hdr_uaddr: 0n })).toBe('BLOB_ADDRESS');
    expect(inject({ trans_uaddr: 0n })).toBe('BLOB_ADDRESS');
    expect(inject({ trans_len: 0x4001 })).toBe('BLOB_LENGTH');
    expect(inject({ guest_len: 0 })).toBe('PIN_RANGE');
  });

  it('copies data in and out of a guest that allows debugging, at any offset', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, 2 * PAGE_SIZE);
    const host = vmm.map(null, 3 * PAGE_SIZE);
    vmm.write(ram, new Uint8Array(2 * PAGE_SIZE).fill(0xaa));
    vmm.must(vmm.updateData(guest, ram, 2 * PAGE_SIZE));
    const dbg = (name: 'DBG_DECRYPT' | 'DBG_ENCRYPT', from: number, to: number, len: number) =>
      vmm.command(guest.fd, name, kvm_sev_dbg.encode({ src_uaddr: BigInt(from), dst_uaddr: BigInt(to), len }));
    vmm.must(dbg('DBG_DECRYPT', ram, host, 2 * PAGE_SIZE));
    expect(vmm.read(host, 2 * PAGE_SIZE)).toEqual(new Uint8Array(2 * PAGE_SIZE).fill(0xaa));
    for (const offset of [0, 1, 8, 15, 16, 23, PAGE_SIZE - 5])
      for (const size of [1, 8, 15, 16, 17, 32, 33, PAGE_SIZE - 1, PAGE_SIZE + 1]) {
        if (offset + size > 2 * PAGE_SIZE) continue;
        const pattern = new Uint8Array(createHash('shake256', { outputLength: size }).update(`${offset} ${size}`).digest());
        vmm.write(host, pattern);
        vmm.must(dbg('DBG_ENCRYPT', host, ram + offset, size));
        vmm.must(dbg('DBG_DECRYPT', ram + offset, host + PAGE_SIZE + 3, size));
        expect(vmm.read(host + PAGE_SIZE + 3, size)).toEqual(pattern);
      }
    expect(dbg('DBG_DECRYPT', ram, host, 0).result).toBe('EINVAL');
    expect(dbg('DBG_DECRYPT', ram, 0, 16).result).toBe('EINVAL');
  });

  it('refuses debugging where the policy does', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest({ policy: 1 });
    const ram = vmm.map(null, PAGE_SIZE);
    vmm.must(vmm.updateData(guest, ram, PAGE_SIZE));
    const dbg = kvm_sev_dbg.encode({ src_uaddr: BigInt(ram), dst_uaddr: BigInt(vmm.map(null, PAGE_SIZE)), len: 16 });
    expect(vmm.command(guest.fd, 'DBG_DECRYPT', dbg)).toMatchObject({ result: 'EIO', error: POLICY_FAILURE });
  });

  it('attests', () => {
    const { vmm } = createSevRig();
    const guest = vmm.createSevGuest();
    const uaddr = vmm.map(null, PAGE_SIZE);
    const ask = (len: number, address = BigInt(uaddr)) => {
      const request = kvm_sev_attestation_report.encode({ mnonce: new Uint8Array(16).fill(7), uaddr: address, len });
      const answer = vmm.command(guest.fd, 'GET_ATTESTATION_REPORT', request);
      return { ...answer, len: kvm_sev_attestation_report.decode(answer.data).len };
    };
    expect(ask(0, 0n)).toMatchObject({ result: 'EIO', error: INVALID_LENGTH, len: 208 });
    expect(ask(208)).toMatchObject({ result: 0, len: 208 });
    expect(vmm.read(uaddr, 16)).toEqual(new Uint8Array(16).fill(7));
  });

  it('leaves neither context nor ASID when its VM is closed', () => {
    const { vmm, host } = createSevRig();
    const guest = vmm.createSevGuest({ vcpus: 2, es: true });
    vmm.must(vmm.command(guest.fd, 'LAUNCH_UPDATE_VMSA'));
    expect(host.kernel.amd?.processor.guests()).toHaveLength(1);
    vmm.process.closeAll();
    host.kernel.sanitizer.callEnded();
    expect(host.kernel.amd?.processor.guests()).toEqual([]);
    expect(host.kernel.amd?.asidKeys.loaded()).toEqual([]);
    expect([guest.vm.kmem.chargedBytes, guest.vm.kmem.reachableBytes]).toEqual([0, 0]);
    expect(host.kernel.findings.all).toEqual([]);
  });
});

describe('registered regions', () => {
  it('pin memory until exactly the same range is given back', () => {
    const { vmm } = createSevRig();
    const { fd, vm } = vmm.createSevGuest();
    const ram = vmm.map(null, 4 * PAGE_SIZE);
    expect(vmm.region(fd, 'REG', ram, 2 * PAGE_SIZE)).toBe(0);
    expect(vmm.region(fd, 'REG', ram, 2 * PAGE_SIZE)).toBe(0);
    expect(toSevInfo(vm).pagesLocked).toBe(4);
    expect(vmm.region(fd, 'UNREG', ram, PAGE_SIZE)).toBe('EINVAL');
    expect(vmm.region(fd, 'UNREG', ram + PAGE_SIZE, 2 * PAGE_SIZE)).toBe('EINVAL');
    expect(vmm.region(fd, 'UNREG', ram, 2 * PAGE_SIZE)).toBe(0);
    expect(vmm.region(fd, 'UNREG', ram, 2 * PAGE_SIZE)).toBe(0);
    expect(vmm.region(fd, 'UNREG', ram, 2 * PAGE_SIZE)).toBe('EINVAL');
    expect(toSevInfo(vm).pagesLocked).toBe(0);
  });

  it('want a SEV guest, and memory', () => {
    const { vmm } = createSevRig();
    const ram = vmm.map(null, PAGE_SIZE);
    const plain = vmm.createGuest(0);
    expect([vmm.region(plain.fd, 'REG', ram, PAGE_SIZE), vmm.region(plain.fd, 'UNREG', ram, PAGE_SIZE)]).toEqual([
      'ENOTTY',
      'ENOTTY',
    ]);
    const { fd } = vmm.createSevGuest();
    expect(vmm.region(fd, 'REG', ram, 0)).toBe('EINVAL');
    expect(vmm.region(fd, 'REG', 0x5000, PAGE_SIZE)).toBe('EFAULT');
    expect(vmm.region(fd, 'REG', ram, 64 * PAGE_SIZE * PAGE_SIZE)).toBe('ENOMEM');
  });

  it('stay pinned when their owner forks, so the guest keeps its pages', () => {
    const { vmm, host } = createSevRig();
    const guest = vmm.createSevGuest();
    const ram = vmm.map(null, 2 * PAGE_SIZE);
    vmm.must(vmm.updateData(guest, ram, 2 * PAGE_SIZE));
    vmm.region(guest.fd, 'REG', ram, PAGE_SIZE);
    host.kernel.fork(vmm.process.process);
    vmm.write(ram, Uint8Array.of(1));
    expect(host.kernel.findings.all).toEqual([]);
    vmm.write(ram + PAGE_SIZE, Uint8Array.of(1));
    expect(host.kernel.findings.all.map(({ kind }) => kind)).toEqual(['ENCRYPTED_PAGE_MOVED']);
  });
});
