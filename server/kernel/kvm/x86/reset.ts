import type { Vcpu } from '../vcpu.js';
import { REQUEST } from '../vcpu.js';
import { kvmLapicReset } from './irq/attach.js';
import type { InitSipi } from './irq/vcpu-irq.js';

/** EDX after reset where CPUID does not give a family. */
const FAMILY_6 = 0x600;

/** `kvm_vcpu_reset`. @param init INIT, which keeps more than a RESET */
export const kvmVcpuReset = (vcpu: Vcpu, init: boolean): void => {
  const { arch } = vcpu;
  const { state, events } = arch;
  kvmLapicReset(vcpu, init);
  events.nmiQueued = 0;
  events.nmiPending = 0;
  events.delivered();
  events.exception.pending = false;
  if (init) state.init();
  else {
    state.reset();
    arch.msrs.reset();
  }
  state.setRegister(2, BigInt(arch.cpuid.find(1, 0)?.eax ?? FAMILY_6));
  arch.cpu.pendingEvent = null;
  arch.completion = null;
  arch.emulation = null;
  arch.flushTlb();
  vcpu.vm.kernel.ops.vcpuReset?.(vcpu, init);
  vcpu.request(REQUEST.EVENT);
};

/** What INIT and SIPI do to a vCPU. */
export const initSipi: InitSipi = {
  reset: (vcpu) => kvmVcpuReset(vcpu, true),
  /** `kvm_vcpu_deliver_sipi_vector`, unless the vendor takes care of it. */
  deliverSipiVector: (vcpu, vector) => {
    if (!vcpu.vm.kernel.ops.deliverSipi(vcpu)) vcpu.arch.state.startup(vector);
  },
};
