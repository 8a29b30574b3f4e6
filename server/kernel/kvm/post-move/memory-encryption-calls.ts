import { failed } from '../../failure.js';
import { KVM_CAP } from '../../uapi/capabilities.js';
import { IOCTL } from '../../uapi/ioctls.js';
import { kvm_enable_cap } from '../../uapi/kvm-structs.js';
import type { GatedCall } from './policy.js';

const MOVE_OR_COPY: ReadonlySet<number> = new Set([KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, KVM_CAP.VM_COPY_ENC_CONTEXT_FROM]);

/** KVM_ENABLE_CAP of a capability that moves or copies an encryption context into the VM. */
const movesOrCopiesIn = ({ request, arg }: GatedCall): boolean => {
  if (request !== IOCTL.KVM_ENABLE_CAP) return false;
  const bytes = arg.user.copyIn(arg.value, kvm_enable_cap.size);
  return !failed(bytes) && MOVE_OR_COPY.has(kvm_enable_cap.decode(bytes).cap);
};

/**
 * Whether a call is about memory encryption: KVM_MEMORY_ENCRYPT_* on a VM or (TDX) a vCPU, and the two capabilities
 * that are about encryption though they come by KVM_ENABLE_CAP.
 */
export const isMemoryEncryptionCall = (call: GatedCall): boolean => {
  if (call.request === IOCTL.KVM_MEMORY_ENCRYPT_OP) return call.scope !== 'device';
  if (call.scope !== 'vm') return false;
  return (
    call.request === IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION ||
    call.request === IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION ||
    movesOrCopiesIn(call)
  );
};
