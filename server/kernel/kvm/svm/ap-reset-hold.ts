import { GHCB, GHCB_MSR, ghcbMsr, setGhcbField } from '../../../hardware/amd/ghcb.js';
import { KVM_EXIT, KVM_MP_STATE } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import { guestAddress, mapGuestPage } from './guest-memory.js';
import { type ApResetHold, toSvm } from './vcpu-svm.js';

/**
 * `kvm_emulate_ap_reset_hold`: an application processor waits for its SIPI where the guest's firmware has put it. Without
 * an in-kernel local APIC the wait is userspace's.
 */
export const holdForSipi = (vcpu: Vcpu, how: Exclude<ApResetHold, 'none'>): VendorExit => {
  toSvm(vcpu).sevEs.apResetHold = how;
  if (vcpu.arch.lapic !== null) {
    vcpu.arch.mpState = KVM_MP_STATE.AP_RESET_HOLD;
    return { kind: 'handled' };
  }
  vcpu.arch.run.exitReason = KVM_EXIT.AP_RESET_HOLD;
  return { kind: 'to-user' };
};

/**
 * `sev_vcpu_deliver_sipi_vector`: the start address is in the encrypted save area, so the first SIPI changes nothing; a
 * later one ends the hold and tells the guest, which then jumps where its AP jump table says.
 */
export const deliverSipi = (vcpu: Vcpu): void => {
  const { sevEs, vmcb } = toSvm(vcpu);
  if (!sevEs.receivedFirstSipi) {
    sevEs.receivedFirstSipi = true;
    return;
  }
  if (sevEs.apResetHold === 'msr-protocol') {
    vmcb.ghcb = ghcbMsr(GHCB_MSR.AP_RESET_HOLD_RESP, 1n);
  } else if (sevEs.apResetHold === 'nae-event') {
    const address = guestAddress(vmcb.ghcb ?? 0n);
    const page = address === null ? null : mapGuestPage(vcpu, address);
    // A non-zero answer in exit_info_2: the wait is over.
    if (page !== null) setGhcbField(page, GHCB.swExitInfo2, 1n);
  }
  sevEs.apResetHold = 'none';
};
