import { describe, expect, it } from 'vitest';
import { GHCB, GHCB_EXIT, GHCB_MSR } from '../../../../../../server/hardware/amd/ghcb.js';
import { SvmExitCode } from '../../../../../../server/hardware/cpu/types.js';
import { PAGE_SIZE } from '../../../../../../server/hardware/units.js';
import { toSvm } from '../../../../../../server/kernel/kvm/svm/vcpu-svm.js';
import { fallocate } from '../../../../../../server/kernel/syscalls/allocate.js';
import { KVM_EXIT } from '../../../../../../server/kernel/uapi/constants.js';
import { kvm_run__hypercall, kvm_run__io, kvm_run__memory_fault } from '../../../../../../server/kernel/uapi/kvm-run.js';
import { GHCB_GPA, vmgexit } from '../es-guest.js';
import {
  accept,
  ask,
  CERTS_GPA,
  changePageState,
  createSnpGuest,
  createSnpHost,
  FREE_GPA,
  mapPrivate,
  privateBytes,
  privateFrame,
  registerGhcb,
  run,
  type SnpGuest,
  setPrivate,
  store,
} from './snp-guest.js';

/** FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE. */
const PUNCH_HOLE = 3;
const IOIO = BigInt(SvmExitCode.IOIO);
const OUT8 = 0x10n;
const BUFFER = BigInt(GHCB_GPA + GHCB.sharedBuffer.offset);
const PATTERN = 0x1234_5678;
const patternBytes = [0x78, 0x56, 0x34, 0x12];

const stateOf = (guest: SnpGuest, address: number) => guest.vm.kernel.amd?.rmp.state(privateFrame(guest, address).pfn);
const hypercall = ({ vcpu }: SnpGuest) => vcpu.arch.run.read(kvm_run__hypercall);
const answer = ({ vcpu }: SnpGuest, ret: bigint): void => kvm_run__hypercall.write(vcpu.runPages.run.bytes, { ret });
const ghcb = (guest: SnpGuest): Uint8Array => guest.vmm.read(guest.address + GHCB_GPA, PAGE_SIZE);
const pscBuffer = (...entries: readonly bigint[]): Uint8Array => {
  const bytes = new Uint8Array(8 + 8 * entries.length);
  const view = new DataView(bytes.buffer);
  view.setUint16(2, entries.length - 1, true);
  for (const [index, entry] of entries.entries()) view.setBigUint64(8 + 8 * index, entry, true);
  return bytes;
};
const entryOf = (address: number, operation: 1n | 2n | 3n, large = false): bigint =>
  BigInt(address) | (operation << 52n) | (large ? 1n << 56n : 0n);
const pscRequest = (...entries: readonly bigint[]) => ({ code: GHCB_EXIT.PSC, scratch: BUFFER, data: pscBuffer(...entries) });

describe('an SNP guest', () => {
  it('runs what was launched, and speaks through the GHCB that it has registered', () => {
    const { vmm, host } = createSnpHost();
    const requests = [{ code: IOIO, info1: (0x10n << 16n) | OUT8, rax: 0x42n }];
    const guest = createSnpGuest(vmm, { code: [...registerGhcb(), ...ask(0)], requests });
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(guest.vcpu.arch.run.read(kvm_run__io)).toMatchObject({ direction: 1, port: 0x10 });
    expect(guest.vcpu.arch.run.pio[0]).toBe(0x42);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('cannot use another GHCB than the registered one: KVM_RUN is EINVAL', () => {
    const { vmm } = createSnpHost();
    const requests = [{ code: IOIO, info1: (0x10n << 16n) | OUT8, rax: 0n }];
    const guest = createSnpGuest(vmm, { code: ask(0), requests });
    expect(vmm.run(guest.vcpuFd)).toBe('EINVAL');
  });

  it('is told the features of the host and that it may choose its GHCB', () => {
    const { vmm } = createSnpHost();
    const first = createSnpGuest(vmm, { code: vmgexit(GHCB_MSR.HV_FEATURES_REQ) });
    expect(run(first)).toBe(KVM_EXIT.HLT);
    expect(toSvm(first.vcpu).vmcb.ghcb).toBe((3n << 12n) | BigInt(GHCB_MSR.HV_FEATURES_RESP));
    const second = createSnpGuest(vmm, { code: vmgexit(GHCB_MSR.PREFERRED_GPA_REQ) });
    expect(run(second)).toBe(KVM_EXIT.HLT);
    expect(toSvm(second.vcpu).vmcb.ghcb).toBe(0xffff_ffff_ffff_f011n);
  });

  it('writes private memory, which is assigned at first touch, and which the host sees as ciphertext', () => {
    const { vmm, host } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: [...accept(FREE_GPA), ...store(FREE_GPA, PATTERN)] });
    expect(stateOf(guest, FREE_GPA)).toBe('hypervisor');
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(stateOf(guest, FREE_GPA)).toBe('guest-valid');
    expect([...privateBytes(guest, FREE_GPA, 4)]).toEqual(patternBytes);
    expect([...privateFrame(guest, FREE_GPA).view(null).subarray(0, 4)]).not.toEqual(patternBytes);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('gets #VC for a page that it has not accepted, and without a handler that is its end', () => {
    const { vmm } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: store(FREE_GPA, PATTERN) });
    expect(run(guest)).toBe(KVM_EXIT.SHUTDOWN);
    expect(stateOf(guest, FREE_GPA)).toBe('guest-invalid');
  });

  it('faults to userspace where the page is not what the guest takes it for', () => {
    const { vmm } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: [...mapPrivate(CERTS_GPA), ...store(CERTS_GPA, PATTERN)] });
    expect(vmm.run(guest.vcpuFd)).toBe('EFAULT');
    expect(guest.vcpu.arch.run.exitReason).toBe(KVM_EXIT.MEMORY_FAULT);
    expect(guest.vcpu.arch.run.read(kvm_run__memory_fault)).toMatchObject({ flags: 8n, gpa: BigInt(CERTS_GPA), size: 4096n });
  });

  it('loses a page that the host takes away and gives back: it has to accept it again', () => {
    const { vmm } = createSnpHost();
    const requests = [{ code: IOIO, info1: (0x10n << 16n) | OUT8, rax: 1n }];
    const code = [...registerGhcb(), ...accept(FREE_GPA), ...store(FREE_GPA, PATTERN), ...ask(0), ...store(FREE_GPA, 0)];
    const guest = createSnpGuest(vmm, { code, requests });
    expect(run(guest)).toBe(KVM_EXIT.IO);
    const frame = privateFrame(guest, FREE_GPA);
    expect(vmm.process.call((current) => fallocate(current, guest.gmemFd, PUNCH_HOLE, BigInt(FREE_GPA), BigInt(PAGE_SIZE)))).toBe(
      0,
    );
    expect(guest.vm.kernel.amd?.rmp.state(frame.pfn)).toBe('hypervisor');
    expect(run(guest)).toBe(KVM_EXIT.SHUTDOWN);
  });
});

describe('a page state change by the MSR', () => {
  const code = [...changePageState(CERTS_GPA, 1), ...mapPrivate(CERTS_GPA), ...accept(CERTS_GPA), ...store(CERTS_GPA, PATTERN)];

  it('is userspace’s to make, and the guest’s to accept', () => {
    const { vmm, host } = createSnpHost();
    const guest = createSnpGuest(vmm, { code });
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(hypercall(guest)).toMatchObject({ nr: 12n, ret: 0n, args: [BigInt(CERTS_GPA), 1n, 16n, 0n, 0n, 0n] });
    setPrivate(vmm, guest.fd, CERTS_GPA, PAGE_SIZE);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(toSvm(guest.vcpu).vmcb.ghcb).toBe(BigInt(GHCB_MSR.PSC_RESP));
    expect([...privateBytes(guest, CERTS_GPA, 4)]).toEqual(patternBytes);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('tells the guest what userspace refuses', () => {
    const { vmm } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: changePageState(FREE_GPA, 2) });
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(hypercall(guest).args[2]).toBe(0n);
    answer(guest, 22n);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(toSvm(guest.vcpu).vmcb.ghcb).toBe((1n << 63n) | BigInt(GHCB_MSR.PSC_RESP));
  });

  it('fails without an exit where userspace has not asked for hypercalls', () => {
    const { vmm } = createSnpHost();
    const guest = createSnpGuest(vmm, { code: changePageState(FREE_GPA, 2), hypercalls: false });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(toSvm(guest.vcpu).vmcb.ghcb).toBe((1n << 63n) | BigInt(GHCB_MSR.PSC_RESP));
  });
});

describe('a list of page state changes', () => {
  const start = (...entries: readonly bigint[]) => {
    const { vmm } = createSnpHost();
    return createSnpGuest(vmm, { code: [...registerGhcb(), ...ask(0)], requests: [pscRequest(...entries)] });
  };
  const result = (guest: SnpGuest): bigint => GHCB.swExitInfo2.get(ghcb(guest));
  const list = (guest: SnpGuest) => new DataView(GHCB.sharedBuffer.get(ghcb(guest)).buffer);

  it('asks userspace once for neighbours, and notes what is done', () => {
    const guest = start(entryOf(0xe000, 2n), entryOf(0xf000, 2n), entryOf(0x20000, 1n));
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(hypercall(guest).args.slice(0, 3)).toEqual([0xe000n, 2n, 0n]);
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(list(guest).getUint16(0, true)).toBe(2);
    expect(hypercall(guest).args.slice(0, 3)).toEqual([0x20000n, 1n, 16n]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(result(guest)).toBe(0n);
    expect(list(guest).getUint16(0, true)).toBe(3);
    expect(list(guest).getBigUint64(8, true)).toBe(entryOf(0xe000, 2n) | 1n);
  });

  it('stops where userspace refuses, with the list showing how far it came', () => {
    const guest = start(entryOf(0xe000, 2n), entryOf(0x20000, 2n));
    run(guest);
    run(guest);
    answer(guest, 1n);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(result(guest)).toBe(0x100n << 32n);
    expect(list(guest).getUint16(0, true)).toBe(1);
  });

  it('takes a page of 2 MiB as 512, and what is left of one that was begun as small ones', () => {
    const guest = start(entryOf(0x20_0000, 2n, true));
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(hypercall(guest).args.slice(0, 3)).toEqual([0x20_0000n, 512n, 1n]);
    const begun = start(entryOf(0x20_0000, 2n, true) | 500n);
    expect(run(begun)).toBe(KVM_EXIT.HYPERCALL);
    expect(hypercall(begun).args.slice(0, 2)).toEqual([0x20_0000n + 500n * 4096n, 12n]);
    expect(run(begun)).toBe(KVM_EXIT.HLT);
    expect(list(begun).getBigUint64(8, true) & 0xfffn).toBe(512n);
  });

  it.each([
    ['a page of 2 MiB off its boundary', entryOf(0x20_1000, 2n, true), (1n << 32n) | 2n],
    ['more pages done than there are', entryOf(0xe000, 2n) | 2n, (1n << 32n) | 2n],
    ['an operation that KVM does not have', entryOf(0xe000, 3n), 0n],
  ])('%s', (_, entry, expected) => {
    const guest = start(entry);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(result(guest)).toBe(expected);
  });

  it('with more entries than the block holds is refused', () => {
    const { vmm } = createSnpHost();
    const data = pscBuffer(entryOf(0xe000, 2n));
    new DataView(data.buffer).setUint16(2, 253, true);
    const request = { code: GHCB_EXIT.PSC, scratch: BUFFER, data };
    const guest = createSnpGuest(vmm, { code: [...registerGhcb(), ...ask(0)], requests: [request] });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(result(guest)).toBe((1n << 32n) | 1n);
  });
});
