import { Failure } from '../../failure.js';
import { KVM_SYNC_X86, KVM_SYNC_X86_VALID_FIELDS } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';
import { applyRegs } from './regs.js';
import { applySregs, readSregs } from './sregs.js';
import { applyEvents, readEvents } from './vcpu-events.js';

const names = (mask: bigint, field: number): boolean => (mask & BigInt(field)) !== 0n;

/** EINVAL: kvm_valid_regs or kvm_dirty_regs name what cannot be synchronised; of a VM with protected state nothing can. */
export const checkSyncRegs = (vcpu: Vcpu): Failure | null => {
  const { run } = vcpu.arch;
  const valid = vcpu.vm.kernel.ops.hasProtectedState(vcpu.vm) ? 0n : BigInt(KVM_SYNC_X86_VALID_FIELDS);
  for (const [field, given] of [
    ['kvm_valid_regs', run.validRegs],
    ['kvm_dirty_regs', run.dirtyRegs],
  ] as const)
    if ((given & ~valid) !== 0n)
      return new Failure('EINVAL', 'SYNC_REGS_UNSUPPORTED', 'kvm_arch_vcpu_ioctl_run', {
        field,
        given: `0x${given.toString(16)}`,
        allowed: `0x${valid.toString(16)}`,
      });
  return null;
};

/** `sync_regs`: registers that userspace hands in through kvm_run. */
export const syncRegs = (vcpu: Vcpu): Failure | null => {
  const { run } = vcpu.arch;
  const dirty = run.dirtyRegs;
  if (dirty === 0n) return null;
  const { regs, sregs, events } = run.syncRegs();
  if (names(dirty, KVM_SYNC_X86.REGS)) applyRegs(vcpu, regs);
  const refused =
    (names(dirty, KVM_SYNC_X86.SREGS) ? applySregs(vcpu, sregs) : null) ??
    (names(dirty, KVM_SYNC_X86.EVENTS) ? applyEvents(vcpu, events) : null);
  if (refused === null) run.dirtyRegs = dirty & ~BigInt(KVM_SYNC_X86_VALID_FIELDS);
  return refused;
};

/** `store_regs`: registers that userspace wants to find in kvm_run. */
export const storeRegs = (vcpu: Vcpu): void => {
  const { run, state } = vcpu.arch;
  const wanted = run.validRegs;
  if (wanted === 0n || vcpu.vm.kernel.ops.guestStateProtected(vcpu)) return;
  if (names(wanted, KVM_SYNC_X86.REGS)) run.writeSyncRegs({ regs: state.getRegisters() });
  if (names(wanted, KVM_SYNC_X86.SREGS)) run.writeSyncRegs({ sregs: readSregs(vcpu) });
  if (names(wanted, KVM_SYNC_X86.EVENTS)) run.writeSyncRegs({ events: readEvents(vcpu) });
};
