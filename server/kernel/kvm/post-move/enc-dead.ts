import { isMemoryEncryptionCall } from './memory-encryption-calls.js';
import { type PostMovePolicy, RUN } from './policy.js';
import { refuse } from './refusal.js';

/**
 * A `vm_mem_enc_dead` beside vm_bugged and vm_dead (2023): only the encryption is dead. Rules:
 * - KVM_MEMORY_ENCRYPT_OP, REG_REGION and UNREG_REGION fail with EIO, on a TD also its vCPUs' commands;
 * - KVM_ENABLE_CAP that moves or copies a context into the VM fails with EIO;
 * - every other ioctl runs, KVM_CREATE_VCPU and KVM_RUN among them.
 */
export const encDead: PostMovePolicy = {
  name: 'ENC_DEAD',
  offersDismantle: false,
  onMove: () => null,
  afterMove: () => {},
  admit: (vm, call) => (isMemoryEncryptionCall(call) ? refuse(vm, call) : RUN),
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
