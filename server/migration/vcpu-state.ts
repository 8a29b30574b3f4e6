import { Failure, failed, type Result } from '../kernel/failure.js';
import { REQUEST, type Vcpu } from '../kernel/kvm/vcpu.js';
import { MSR } from '../kernel/kvm/x86/msr-index.js';
import { SAVED_MSRS } from '../kernel/kvm/x86/msr-store.js';
import { getMsr, setMsr } from '../kernel/kvm/x86/msrs.js';
import { KVM_GUESTDBG } from '../kernel/uapi/constants.js';
import { IOCTL } from '../kernel/uapi/ioctls.js';
import { kvm_mp_state, kvm_tpr_access_ctl, kvm_vapic_addr } from '../kernel/uapi/kvm-structs.js';
import type { Fields, Struct } from '../kernel/uapi/struct.js';
import {
  kvm_debugregs,
  kvm_guest_debug,
  kvm_lapic_state,
  kvm_regs,
  kvm_sregs,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../kernel/uapi/x86-structs.js';
import { vcpuCall, vcpuCallArg } from './kernel-call.js';
import { fromWords, PART, type StatePart, words } from './state-parts.js';

/** What KVM keeps of a vCPU, whatever kind of guest it belongs to. */

/** An ioctl that reads, the one that puts it back, and what they exchange. */
interface Exchange {
  readonly get: number;
  readonly set: number;
  readonly layout: Struct<Fields>;
}

/** Registers that a SEV-ES guest has in its save area, in the order in which they can be set. */
const REGISTERS: readonly Exchange[] = [
  { get: IOCTL.KVM_GET_SREGS, set: IOCTL.KVM_SET_SREGS, layout: kvm_sregs },
  { get: IOCTL.KVM_GET_REGS, set: IOCTL.KVM_SET_REGS, layout: kvm_regs },
  { get: IOCTL.KVM_GET_XCRS, set: IOCTL.KVM_SET_XCRS, layout: kvm_xcrs },
  { get: IOCTL.KVM_GET_XSAVE, set: IOCTL.KVM_SET_XSAVE, layout: kvm_xsave },
  { get: IOCTL.KVM_GET_DEBUGREGS, set: IOCTL.KVM_SET_DEBUGREGS, layout: kvm_debugregs },
];

const EVENTS: Exchange = { get: IOCTL.KVM_GET_VCPU_EVENTS, set: IOCTL.KVM_SET_VCPU_EVENTS, layout: kvm_vcpu_events };
const MP_STATE: Exchange = { get: IOCTL.KVM_GET_MP_STATE, set: IOCTL.KVM_SET_MP_STATE, layout: kvm_mp_state };
const LAPIC: Exchange = { get: IOCTL.KVM_GET_LAPIC, set: IOCTL.KVM_SET_LAPIC, layout: kvm_lapic_state };

/** Requests that a state may ask for: a source does not choose what is done on a destination. */
const REQUESTS: ReadonlySet<number> = new Set([
  ...[...REGISTERS, EVENTS, MP_STATE, LAPIC].map(({ set }) => set),
  ...[IOCTL.KVM_X86_SETUP_MCE, IOCTL.KVM_SET_VAPIC_ADDR, IOCTL.KVM_TPR_ACCESS_REPORTING, IOCTL.KVM_SET_GUEST_DEBUG],
]);

/** Writable ones that KVM_GET_MSR_INDEX_LIST leaves out; those of the CPU itself are in the other registers. */
const UNLISTED_MSRS = [MSR.UCODE_REV, MSR.AMD64_DE_CFG, MSR.VM_CR] as const;
const MCE_BANK_MSRS = 4;
/** What KVM_X86_SETUP_MCE leaves in the control register of a bank. */
const MCE_BANK_ENABLED = (1n << 64n) - 1n;

const call = (vcpu: Vcpu, request: number, bytes: Uint8Array): StatePart => ({
  kind: PART.VCPU_IOCTL,
  index: vcpu.index,
  request,
  bytes,
});

const read = (vcpu: Vcpu, { get, set, layout }: Exchange): Result<StatePart> => {
  const bytes = new Uint8Array(layout.size);
  const refused = vcpuCall(vcpu, get, bytes);
  return failed(refused) ? refused : call(vcpu, set, bytes);
};

const msrsPart = (vcpu: Vcpu, pairs: readonly bigint[]): StatePart => ({
  kind: PART.VCPU_MSRS,
  index: vcpu.index,
  request: 0,
  bytes: words(pairs),
});

const readMsrs = (vcpu: Vcpu, indices: readonly number[]): bigint[] =>
  indices.flatMap((index) => {
    const value = getMsr(vcpu, index, true);
    return value === null ? [] : [BigInt(index), value];
  });

/** Registers of the machine check banks, but for those that are as KVM_X86_SETUP_MCE makes them. */
const readMceBanks = ({ arch }: Vcpu): bigint[] =>
  Array.from({ length: MCE_BANK_MSRS * arch.msrs.mceBanks }, (_, at) => at).flatMap((at) => {
    const value = arch.msrs.get(MSR.MC0_CTL + at) ?? 0n;
    return value === (at % MCE_BANK_MSRS === 0 ? MCE_BANK_ENABLED : 0n) ? [] : [BigInt(MSR.MC0_CTL + at), value];
  });

/** The TSC is not among them: those of all vCPUs are read and set at one moment. */
const msrParts = (vcpu: Vcpu): StatePart[] => {
  const listed = SAVED_MSRS.filter((index) => index !== MSR.TSC);
  return [msrsPart(vcpu, [...readMsrs(vcpu, [...listed, ...UNLISTED_MSRS]), ...readMceBanks(vcpu)])];
};

/** What only KVM_SET_* calls set: how many banks there are, and what the VMM or its debugger has asked for. */
const settingParts = (vcpu: Vcpu): StatePart[] => {
  const { msrs, lapic, tprAccessReporting, guestDebug } = vcpu.arch;
  const parts = [call(vcpu, IOCTL.KVM_X86_SETUP_MCE, words([msrs.get(MSR.MCG_CAP) ?? 0n]))];
  if (lapic !== null && lapic.vapicAddress !== null)
    parts.push(call(vcpu, IOCTL.KVM_SET_VAPIC_ADDR, kvm_vapic_addr.encode({ vapic_addr: BigInt(lapic.vapicAddress) })));
  if (tprAccessReporting) parts.push(call(vcpu, IOCTL.KVM_TPR_ACCESS_REPORTING, kvm_tpr_access_ctl.encode({ enabled: 1 })));
  // An exception that was to be injected is among the events.
  const control = guestDebug.control & ~(KVM_GUESTDBG.INJECT_DB | KVM_GUESTDBG.INJECT_BP);
  if (control !== 0)
    parts.push(
      call(vcpu, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control, debugreg: [...guestDebug.debugRegisters] })),
    );
  return parts;
};

/** What the vCPU would tell userspace, or be given, at its next entry: no ioctl reads it. */
const pendingPart = (vcpu: Vcpu): StatePart => {
  const { lapic, tprAccess } = vcpu.arch;
  const eoi = lapic !== null && vcpu.testRequest(REQUEST.IOAPIC_EOI_EXIT) ? lapic.pendingIoapicEoi + 1 : 0;
  const tpr = tprAccess !== null && vcpu.testRequest(REQUEST.REPORT_TPR_ACCESS) ? 1 + (tprAccess.isWrite ? 1 : 0) : 0;
  const values = [vcpu.testRequest(REQUEST.TRIPLE_FAULT) ? 1 : 0, (lapic?.pendingExternalVector ?? -1) + 1, eoi, tpr];
  return { kind: PART.VCPU_PENDING, index: vcpu.index, request: 0, bytes: words(values.map(BigInt)) };
};

/** The frequency of a vCPU's TSC, which must be known before anybody says what it counts. */
export const tscKhzPart = ({ arch, index }: Vcpu): StatePart => ({
  kind: PART.VCPU_TSC_KHZ,
  index,
  request: arch.tscKhz,
  bytes: new Uint8Array(0),
});

/**
 * The parts of a stopped vCPU that KVM has; registers are not among them where the guest's are encrypted. The local APIC needs
 * its mode from IA32_APIC_BASE, and IA32_TSC_DEADLINE the timer's mode from the local APIC.
 */
export const vcpuParts = (vcpu: Vcpu): Result<StatePart>[] => {
  const { arch, vm } = vcpu;
  const hasRegisters = !vm.kernel.ops.guestStateProtected(vcpu);
  return [
    ...(hasRegisters ? REGISTERS.map((exchange) => read(vcpu, exchange)) : [msrsPart(vcpu, readMsrs(vcpu, [MSR.APIC_BASE]))]),
    ...settingParts(vcpu),
    ...(arch.lapic === null ? [] : [read(vcpu, LAPIC)]),
    ...msrParts(vcpu),
    read(vcpu, MP_STATE),
    read(vcpu, EVENTS),
    pendingPart(vcpu),
  ];
};

const refuse = (reason: string, part: StatePart): Failure =>
  new Failure('EINVAL', reason, 'server/migration', { kind: String(part.kind), request: `0x${part.request.toString(16)}` });

const writeMsrs = (vcpu: Vcpu, part: StatePart): Failure | null => {
  const values = fromWords(part.bytes);
  for (let at = 0; at + 1 < values.length; at += 2) {
    const index = Number(values[at]);
    const value = values[at + 1] ?? 0n;
    // A read-only one is no obstacle if it has the value already.
    if (!setMsr(vcpu, index, value, true) && getMsr(vcpu, index, true) !== value)
      return refuse('MSR_NOT_RESTORED', part).with({ vcpu: String(vcpu.id), msr: `0x${index.toString(16)}` });
  }
  return null;
};

const restorePending = (vcpu: Vcpu, part: StatePart): null => {
  const [tripleFault = 0, external = 0, eoi = 0, tpr = 0] = fromWords(part.bytes).map(Number);
  const { lapic } = vcpu.arch;
  if (tripleFault !== 0) vcpu.request(REQUEST.TRIPLE_FAULT);
  if (lapic !== null && external > 0) lapic.pendingExternalVector = (external - 1) & 0xff;
  if (lapic !== null && eoi > 0) {
    lapic.pendingIoapicEoi = (eoi - 1) & 0xff;
    vcpu.request(REQUEST.IOAPIC_EOI_EXIT);
  }
  if (tpr > 0) {
    vcpu.arch.tprAccess = { isWrite: tpr > 1 };
    vcpu.request(REQUEST.REPORT_TPR_ACCESS);
  }
  return null;
};

const asFailure = (result: Result<number>): Failure | null => (failed(result) ? result : null);

/** Puts one part of a vCPU back. EINVAL: it is none of a vCPU. */
export const restoreVcpuPart = (vcpu: Vcpu, part: StatePart): Failure | null => {
  switch (part.kind) {
    case PART.VCPU_IOCTL:
      if (!REQUESTS.has(part.request)) return refuse('STATE_REQUEST_NOT_ALLOWED', part);
      return asFailure(vcpuCall(vcpu, part.request, part.bytes));
    case PART.VCPU_TSC_KHZ:
      return asFailure(vcpuCallArg(vcpu, IOCTL.KVM_SET_TSC_KHZ, { value: BigInt(part.request), user: vcpu.vm.mm }));
    case PART.VCPU_MSRS:
      return writeMsrs(vcpu, part);
    case PART.VCPU_PENDING:
      return restorePending(vcpu, part);
    default:
      return refuse('STATE_PART_UNEXPECTED', part);
  }
};
