import { Vector } from '../../../hardware/cpu/registers.js';
import type { MemoryEncryption } from '../../../hardware/cpu/types.js';
import { KVM_GUESTDBG } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';
import { msrIntercepted } from './msr-exit.js';

const sameEncryption = (a: MemoryEncryption, b: MemoryEncryption): boolean => {
  if (a.kind === 'sev') return b.kind === 'sev' && a.cBit === b.cBit;
  return a.kind === 'tdx' ? b.kind === 'tdx' && a.sharedBit === b.sharedBit : b.kind === 'none';
};

/** What of a vCPU's control area the CPU holds between entries; it is told only of changes, for they cost it its TLB. */
export class CpuMode {
  private encryption: MemoryEncryption = { kind: 'none' };
  private intercepts = -1;

  /** Before each entry: how memory is encrypted, and what exits. */
  apply(vcpu: Vcpu): void {
    const { arch, vm } = vcpu;
    const { ops } = vm.kernel;
    const encryption = ops.memoryEncryption(vcpu);
    if (!sameEncryption(encryption, this.encryption)) {
      this.encryption = encryption;
      arch.cpu.setEncryption(encryption);
    }
    this.applyIntercepts(vcpu, ops.encryptedState(vcpu), ops.debugSwap?.(vcpu) ?? false);
  }

  private applyIntercepts(vcpu: Vcpu, encrypted: boolean, debugSwap: boolean): void {
    const { arch } = vcpu;
    const { control } = arch.guestDebug;
    const singleStep = (control & KVM_GUESTDBG.SINGLESTEP) !== 0;
    const cr8Write = arch.lapic !== null && !encrypted;
    // #UD is intercepted to emulate what the CPU does not know, which needs the guest's memory in the clear.
    let exceptions = this.encryption.kind === 'none' ? 1 << Vector.UD : 0;
    if ((control & KVM_GUESTDBG.USE_SW_BP) !== 0) exceptions |= 1 << Vector.BP;
    if ((control & KVM_GUESTDBG.USE_HW_BP) !== 0) exceptions |= 1 << Vector.DB;
    const modes = (debugSwap ? 1 << 27 : 0) | (singleStep ? 1 << 28 : 0) | (cr8Write ? 1 << 29 : 0) | (encrypted ? 1 << 30 : 0);
    const wanted = exceptions | modes;
    if (wanted === this.intercepts) return;
    this.intercepts = wanted;
    arch.cpu.setIntercepts({
      exceptions,
      pause: false,
      rdtsc: false,
      cr8Write,
      writeTraps: encrypted,
      singleStep,
      nonAutomatic: encrypted ? 'vc' : 'exit',
      debugSwap,
      msr: (index, write) => msrIntercepted(vcpu, index, write),
    });
  }
}
