import { X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { decodeEcSignature } from '../../../../../../server/hardware/amd/certificates.js';
import { GHCB, GHCB_EXIT } from '../../../../../../server/hardware/amd/ghcb.js';
import { verifySignature } from '../../../../../../server/hardware/amd/p384.js';
import { REPORT, REPORT_SIGNED_LENGTH } from '../../../../../../server/hardware/amd/snp/attestation-report.js';
import { MESSAGE_TYPE, openMessage, sealMessage } from '../../../../../../server/hardware/amd/snp/guest-message.js';
import { PAGE_SIZE } from '../../../../../../server/hardware/units.js';
import { KVM_EXIT, KVM_SYSTEM_EVENT } from '../../../../../../server/kernel/uapi/constants.js';
import { kvm_run__snp_req_certs, kvm_run__system_event } from '../../../../../../server/kernel/uapi/kvm-run.js';
import { GHCB_GPA, type GhcbRequest, vmgexit } from '../es-guest.js';
import {
  ask,
  CERTS_GPA,
  copy,
  createSnpGuest,
  createSnpHost,
  REQUEST_GPA,
  RESPONSE_GPA,
  registerGhcb,
  run,
  SNP_POLICY,
  type SnpGuest,
  type SnpGuestOptions,
  vmpck0,
} from './snp-guest.js';

const REPORT_DATA = new Uint8Array(64).fill(0x5a);
const pages = { info1: BigInt(REQUEST_GPA), info2: BigInt(RESPONSE_GPA) };
const GUEST_REQUEST: GhcbRequest = { code: GHCB_EXIT.GUEST_REQUEST, ...pages };
const EXTENDED: GhcbRequest = { code: GHCB_EXIT.EXT_GUEST_REQUEST, ...pages, rax: BigInt(CERTS_GPA), rbx: 1n };

const ghcb = (guest: SnpGuest): Uint8Array => guest.vmm.read(guest.address + GHCB_GPA, PAGE_SIZE);
const info = (guest: SnpGuest): bigint[] => [GHCB.swExitInfo1.get(ghcb(guest)), GHCB.swExitInfo2.get(ghcb(guest))];

/** What the guest's driver would write to its shared page. */
const askForReport = (guest: SnpGuest, seqno = 1n): void => {
  const payload = new Uint8Array(96);
  payload.set(REPORT_DATA);
  const message = sealMessage(vmpck0(guest), { type: MESSAGE_TYPE.REPORT_REQ, seqno, vmpck: 0, payload });
  guest.vmm.write(guest.address + REQUEST_GPA, message);
};

const reportOf = (guest: SnpGuest): Uint8Array => {
  const answer = openMessage(vmpck0(guest), guest.vmm.read(guest.address + RESPONSE_GPA, PAGE_SIZE));
  expect(answer).toMatchObject({ type: MESSAGE_TYPE.REPORT_RSP, seqno: 2n });
  return answer?.payload.slice(32, 32 + REPORT.size) ?? new Uint8Array(0);
};

const start = (requests: readonly GhcbRequest[], options: Partial<SnpGuestOptions> = {}) => {
  const rig = createSnpHost();
  const code = [...registerGhcb(), ...requests.flatMap((_, index) => ask(index))];
  return { ...rig, guest: createSnpGuest(rig.vmm, { code, requests, ...options }) };
};

describe('a guest request', () => {
  it('brings a report that the chip’s key has signed', () => {
    const { guest, host } = start([GUEST_REQUEST]);
    askForReport(guest);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(info(guest)).toEqual([0n, 0n]);
    const report = reportOf(guest);
    expect(REPORT.reportData.get(report)).toEqual(REPORT_DATA);
    expect(REPORT.policy.get(report)).toBe(SNP_POLICY);
    const certificate = host.kernel.amd?.processor.vcekCertificate();
    if (certificate === undefined) throw new Error('no certificate');
    const { x, y } = new X509Certificate(certificate).publicKey.export({ format: 'jwk' });
    const key = { x: Buffer.from(x ?? '', 'base64url'), y: Buffer.from(y ?? '', 'base64url') };
    const signature = decodeEcSignature(REPORT.signature.get(report));
    const verifies = (bytes: Uint8Array): boolean =>
      signature !== null && verifySignature('sha384', key, bytes.subarray(0, REPORT_SIGNED_LENGTH), signature);
    expect(verifies(report)).toBe(true);
    report[0x50] ^= 1;
    expect(verifies(report)).toBe(false);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it.each([
    [0, 0],
    [1, 0x27],
    [2, 0],
    [3, 0x27],
  ])('of a guest whose launch ended with vcek_disabled %i has the status %i: one bit counts', (vcekDisabled, status) => {
    const { guest } = start([GUEST_REQUEST], { vcekDisabled });
    askForReport(guest);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const answer = openMessage(vmpck0(guest), guest.vmm.read(guest.address + RESPONSE_GPA, PAGE_SIZE));
    expect(answer?.payload[0]).toBe(status);
  });

  it('passes on what the firmware says to the guest', () => {
    const { guest } = start([GUEST_REQUEST]);
    askForReport(guest, 7n);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(info(guest)).toEqual([0n, 0x16n]);
  });

  it.each([
    ['one page for both', { ...GUEST_REQUEST, info2: BigInt(REQUEST_GPA) }],
    ['an address inside a page', { ...GUEST_REQUEST, info1: BigInt(REQUEST_GPA + 8) }],
  ])('with %s is malformed', (_, request) => {
    const { guest } = start([request]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(info(guest)).toEqual([2n, 4n]);
  });

  it('ends KVM_RUN where there is no memory, and where /dev/sev has been closed', () => {
    const { guest, vmm } = start([{ ...GUEST_REQUEST, info1: 0x1000_0000n }]);
    expect(vmm.run(guest.vcpuFd)).toBe('EIO');
    const closed = start([GUEST_REQUEST]);
    askForReport(closed.guest);
    closed.vmm.process.close(closed.vmm.sevFd);
    expect(closed.vmm.run(closed.guest.vcpuFd)).toBe('EBADF');
  });
});

describe('an extended guest request', () => {
  it('comes with an empty table of certificates where userspace has none to give', () => {
    const { guest, vmm } = start([EXTENDED]);
    askForReport(guest);
    vmm.write(guest.address + CERTS_GPA, new Uint8Array(32).fill(0xff));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect([...vmm.read(guest.address + CERTS_GPA, 25)]).toEqual([...new Uint8Array(24), 0xff]);
    expect(REPORT.reportData.get(reportOf(guest))).toEqual(REPORT_DATA);
  });

  it('asks userspace for certificates, and then the firmware', () => {
    const { guest } = start([EXTENDED], { certificates: true });
    askForReport(guest);
    expect(run(guest)).toBe(KVM_EXIT.SNP_REQ_CERTS);
    expect(guest.vcpu.arch.run.read(kvm_run__snp_req_certs)).toEqual({ gpa: BigInt(CERTS_GPA), npages: 1n, ret: 0n });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(REPORT.reportData.get(reportOf(guest))).toEqual(REPORT_DATA);
  });

  it.each([
    ['too few pages, with how many it takes', 28n, 1n << 32n, 4n],
    ['come again', 11n, 2n << 32n, 1n],
    ['no certificates at all', 5n, 0xffff_ffffn << 32n, 1n],
  ])('tells the guest: %s', (_, ret, info2, npages) => {
    const { guest } = start([EXTENDED], { certificates: true });
    askForReport(guest);
    run(guest);
    kvm_run__snp_req_certs.write(guest.vcpu.runPages.run.bytes, { ret, npages });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(info(guest)[1]).toBe(info2);
    if (ret === 28n) expect(GHCB.rbx.get(ghcb(guest))).toBe(npages);
  });

  it('takes no other answer', () => {
    const { guest, vmm } = start([EXTENDED], { certificates: true });
    askForReport(guest);
    run(guest);
    kvm_run__snp_req_certs.write(guest.vcpu.runPages.run.bytes, { ret: 1n });
    expect(vmm.run(guest.vcpuFd)).toBe('EINVAL');
  });

  it('without the registers that name the pages is invalid', () => {
    const { guest } = start([{ code: GHCB_EXIT.EXT_GUEST_REQUEST, ...pages }]);
    askForReport(guest);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(info(guest)).toEqual([2n, 5n]);
  });
});

describe('termination', () => {
  it('is reported with what the guest has said', () => {
    const { vmm } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: [...copy(0x1000, 0x1000, 1), ...vmgexit(0x100)] });
    expect(run(guest)).toBe(KVM_EXIT.SYSTEM_EVENT);
    const event = guest.vcpu.arch.run.read(kvm_run__system_event);
    expect([event.type, event.ndata, event.data[0]]).toEqual([KVM_SYSTEM_EVENT.SEV_TERM, 1, 0x100n]);
  });
});
