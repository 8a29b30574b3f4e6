import { describe, expect, it } from 'vitest';
import { GHCB, GHCB_EXIT } from '../../../../../../server/hardware/amd/ghcb.js';
import { storeSaveArea } from '../../../../../../server/hardware/amd/save-area.js';
import { SEV_FEATURE, VMSA } from '../../../../../../server/hardware/amd/vmsa.js';
import { CpuState } from '../../../../../../server/hardware/cpu/state.js';
import { SvmExitCode } from '../../../../../../server/hardware/cpu/types.js';
import { PAGE_SIZE } from '../../../../../../server/hardware/units.js';
import { toSvm } from '../../../../../../server/kernel/kvm/svm/vcpu-svm.js';
import { KVM_EXIT, KVM_MP_STATE } from '../../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../../server/kernel/uapi/ioctls.js';
import { kvm_mp_state } from '../../../../../../server/kernel/uapi/kvm-structs.js';
import { GHCB_GPA, type GhcbRequest } from '../es-guest.js';
import {
  accept,
  ask,
  copy,
  createSnpGuest,
  createSnpHost,
  FREE_GPA,
  HLT,
  makeSaveArea,
  privateBytes,
  privateFrame,
  registerGhcb,
  run,
  type SnpGuest,
  store,
  templateAt,
} from './snp-guest.js';

const ON_INIT = 0n;
const CREATE = 1n;
const DESTROY = 2n;
const AP = 1n << 32n;
const PATTERN = 0x0a0b_0c0d;

const outTo = (port: bigint): GhcbRequest => ({ code: BigInt(SvmExitCode.IOIO), info1: (port << 16n) | 0x10n, rax: 0n });
const creation = (operation: bigint, fields: Partial<GhcbRequest> = {}): GhcbRequest => ({
  ...{ code: GHCB_EXIT.AP_CREATION, info1: AP | operation, info2: BigInt(FREE_GPA), rax: SEV_FEATURE.SNP_ACTIVE },
  ...fields,
});

/** Where the tests' guests have what the AP executes, its save area's contents, and what it writes. */
const CODE_PAGE = 3;
const VMSA_PAGE = 4;
const RESULT_PAGE = 5;

/** A save area in 64-bit mode, as a guest makes it: registers of the BSP with another RIP. */
const saveArea = (): Uint8Array => {
  const state = new CpuState();
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  state.setSegment('cs', { ...flat, selector: 8, type: 11, db: 0, l: 1 });
  for (const name of ['ds', 'es', 'ss'] as const) state.setSegment(name, { ...flat, selector: 16, type: 3, db: 1, l: 0 });
  state.efer = 0x500n;
  state.cr0 = 0x8000_0011n;
  state.cr3 = 0x1000n;
  state.cr4 = 0x20n;
  state.rip = BigInt(templateAt(CODE_PAGE));
  const page = new Uint8Array(PAGE_SIZE);
  storeSaveArea(state, page);
  VMSA.sevFeatures.set(page, SEV_FEATURE.SNP_ACTIVE);
  return page;
};

const apCode = (): Uint8Array => {
  const page = new Uint8Array(PAGE_SIZE);
  page.set([...store(templateAt(RESULT_PAGE), PATTERN), ...HLT, 0xeb, 0xfd]);
  return page;
};

/** A guest whose BSP makes a save area in a page that it has accepted, and then three requests. */
const start = (requests: readonly [GhcbRequest, GhcbRequest, GhcbRequest]) => {
  const rig = createSnpHost();
  const code = [
    ...registerGhcb(),
    ...accept(FREE_GPA),
    ...copy(templateAt(VMSA_PAGE), FREE_GPA, PAGE_SIZE),
    ...makeSaveArea(FREE_GPA),
    ...[0, 1, 2].flatMap(ask),
  ];
  const pages = [apCode(), saveArea(), new Uint8Array(PAGE_SIZE)];
  const guest = createSnpGuest(rig.vmm, { code, requests, pages, vcpus: 2, irqchip: true });
  const [, ap] = guest.vcpus;
  if (ap === undefined) throw new Error('no AP');
  const { process } = rig.vmm;
  const halt = kvm_mp_state.encode({ mp_state: KVM_MP_STATE.HALTED });
  process.must(process.ioctl(ap.fd, IOCTL.KVM_SET_MP_STATE, halt));
  return { ...rig, guest, ap, apRun: process.startIoctl(ap.fd, IOCTL.KVM_RUN) };
};

const written = (guest: SnpGuest): number => {
  const bytes = privateBytes(guest, templateAt(RESULT_PAGE), 4);
  return new DataView(bytes.buffer).getUint32(0, true);
};
const info = ({ vmm, address }: SnpGuest): bigint[] => {
  const page = vmm.read(address + GHCB_GPA, PAGE_SIZE);
  return [GHCB.swExitInfo1.get(page), GHCB.swExitInfo2.get(page)];
};

describe('an SNP guest that starts another of its vCPUs', () => {
  it('does so from a save area of its own, and can stop it again', () => {
    const { guest, ap, apRun, host } = start([creation(CREATE), outTo(0x10n), creation(DESTROY)]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(written(guest)).toBe(PATTERN);
    expect(toSvm(ap.vcpu).vmcb.vmsa?.frame).toBe(privateFrame(guest, FREE_GPA));
    // The AP sleeps in its HLT, and the BSP goes on to its own.
    guest.vmm.process.startIoctl(guest.vcpuFd, IOCTL.KVM_RUN);
    expect(apRun.result()).toBeUndefined();
    expect(toSvm(ap.vcpu).vmcb.vmsa).toBeNull();
    expect(ap.vcpu.arch.mpState).toBe(KVM_MP_STATE.HALTED);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('may leave it to the next INIT', () => {
    const { guest, ap } = start([creation(ON_INIT), outTo(0x10n), outTo(0x11n)]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(written(guest)).toBe(0);
    expect(toSvm(ap.vcpu).sevEs.apCreation).toEqual({ vmsa: FREE_GPA / PAGE_SIZE });
  });

  it.each([
    ['a vCPU that there is not', creation(CREATE, { info1: (7n << 32n) | CREATE })],
    ['an operation that there is not', creation(3n)],
    ['features that are not the guest’s', creation(CREATE, { rax: SEV_FEATURE.SNP_ACTIVE | SEV_FEATURE.DEBUG_SWAP })],
    ['an address inside a page', creation(CREATE, { info2: BigInt(FREE_GPA + 16) })],
    ['a page at a boundary of 2 MiB', creation(CREATE, { info2: 0x20_0000n })],
  ])('is refused with %s', (_, request) => {
    const { guest, ap } = start([request, request, request]);
    guest.vmm.process.startIoctl(guest.vcpuFd, IOCTL.KVM_RUN);
    expect(info(guest)).toEqual([2n, 5n]);
    expect(toSvm(ap.vcpu).sevEs.apCreation).toBeNull();
    expect(written(guest)).toBe(0);
  });

  it('does not need the features to stop it', () => {
    const { guest, ap } = start([{ code: GHCB_EXIT.AP_CREATION, info1: AP | DESTROY, info2: 0n }, outTo(0x10n), outTo(0x11n)]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(ap.vcpu.arch.mpState).toBe(KVM_MP_STATE.HALTED);
  });
});
