import {
  type Kvm,
  type KvmIrqchip,
  type KvmMpState,
  type KvmMpStateInit,
  KvmMpStateValue,
  type KvmMsrEntry,
  type Vcpu,
  type Vm,
} from '../../index.js';
import type { Encryption, Vmm } from './vmm.js';

/** The three chips of an in-kernel irqchip: both PICs, and the IOAPIC. */
const CHIPS = [0, 1, 2] as const;

/** MSRs that the kernel keeps for a guest whose registers are encrypted: APIC base, TSC, and kvmclock's pages. */
const KVM_OWNED_MSRS = [0x1b, 0x10, 0x4b56_4d00, 0x4b56_4d01] as const;

/** Everything of a vCPU that KVM knows and that no move carries; for SEV-ES without what is in the save area. */
const saveVcpu = async (kvm: Kvm, vcpu: Vcpu, encryption: Encryption) => {
  const mpState = await vcpu.getMpState();
  const registers =
    encryption === 'SEV'
      ? {
          sregs: await vcpu.getSregs(),
          regs: await vcpu.getRegs(),
          xsave: await vcpu.getXsave(),
          xcrs: await vcpu.getXcrs(),
          debugregs: await vcpu.getDebugregs(),
        }
      : null;
  const indices = encryption === 'SEV' ? (await kvm.getMsrIndexList()).indices : KVM_OWNED_MSRS;
  return {
    mpState,
    registers,
    msrs: await readMsrs(vcpu, indices),
    lapic: await vcpu.getLapic(),
    events: await vcpu.getVcpuEvents(),
    cpuid: await vcpu.getCpuid2(),
    tscKhz: await vcpu.getTscKhz(),
  };
};

/** KVM_GET_MSRS reads up to the first index that it does not have: the rest is asked for again, without it. */
const readMsrs = async (vcpu: Vcpu, indices: readonly number[]): Promise<KvmMsrEntry[]> => {
  const found: KvmMsrEntry[] = [];
  for (let rest = indices; rest.length > 0; ) {
    const read = await vcpu.getMsrs({ entries: rest.map((index) => ({ index })) });
    found.push(...read);
    rest = rest.slice(read.length + 1);
  }
  return found;
};

type VcpuState = Awaited<ReturnType<typeof saveVcpu>>;

/** What a VMM has read from the source, in order to give it to the destination. */
export interface CarriedState {
  readonly vcpus: readonly VcpuState[];
  readonly chips: readonly KvmIrqchip[];
  readonly clock: bigint;
}

/** Reads what the move will leave behind. The vCPUs are stopped, and have no exit left half done. */
export const saveState = async ({ kvm, vm, vcpus }: Vmm, encryption: Encryption): Promise<CarriedState> => {
  const states: VcpuState[] = [];
  for (const vcpu of vcpus) states.push(await saveVcpu(kvm, vcpu, encryption));
  const chips: KvmIrqchip[] = [];
  for (const chip_id of CHIPS) chips.push(await vm.getIrqchip({ chip_id }));
  return { vcpus: states, chips, clock: (await vm.getClock()).clock ?? 0n };
};

/**
 * A halted SEV-ES vCPU has to be made runnable: whether it accepts interrupts is in its VMCB (`int_state`), which does not
 * move, so that until its first entry KVM would not wake it for any [D]. HLT then ends for no reason, as it may at any time.
 */
const awake = (mpState: KvmMpState): KvmMpStateInit =>
  mpState.mp_state === KvmMpStateValue.KVM_MP_STATE_HALTED ? { mp_state: KvmMpStateValue.KVM_MP_STATE_RUNNABLE } : mpState;

const restoreVcpu = async (vcpu: Vcpu, state: VcpuState): Promise<void> => {
  // Once more: until the move the VM was no SEV guest, and a CR3 with the C-bit would have been refused.
  await vcpu.setCpuid2(state.cpuid);
  await vcpu.setTscKhz(state.tscKhz);
  if (state.registers !== null) {
    const { sregs, regs, xsave, xcrs, debugregs } = state.registers;
    await vcpu.setSregs(sregs);
    await vcpu.setRegs(regs);
    await vcpu.setXcrs(xcrs);
    await vcpu.setXsave(xsave);
    await vcpu.setDebugregs(debugregs);
  }
  await writeMsrs(vcpu, state.msrs);
  await vcpu.setMpState(state.registers === null ? awake(state.mpState) : state.mpState);
  await vcpu.setLapic(state.lapic);
  await vcpu.setVcpuEvents(state.events);
};

/** KVM_SET_MSRS writes up to the first that is refused: read-only ones that have the value already. */
const writeMsrs = async (vcpu: Vcpu, entries: readonly KvmMsrEntry[]): Promise<void> => {
  for (let rest = entries; rest.length > 0; ) rest = rest.slice((await vcpu.setMsrs({ entries: [...rest] })) + 1);
};

const restoreVm = async (vm: Vm, { chips, clock }: CarriedState): Promise<void> => {
  for (const chip of chips) await vm.setIrqchip(chip);
  await vm.setClock({ clock });
};

/** Gives the destination what the move has left behind, in the order that works: interrupt controllers first, then vCPUs. */
export const restoreState = async ({ vm, vcpus }: Vmm, state: CarriedState): Promise<void> => {
  await restoreVm(vm, state);
  for (const [id, vcpu] of vcpus.entries()) {
    const saved = state.vcpus[id];
    if (saved !== undefined) await restoreVcpu(vcpu, saved);
  }
};
