import { struct, u32, u64 } from './struct.js';

/** KVM_MEMORY_ENCRYPT_OP on Intel hosts, on VM and vCPU. `hw_error`: status of the TDX module, written. */
export const kvm_tdx_cmd = struct('kvm_tdx_cmd', 24, {
  id: u32(0),
  flags: u32(4),
  data: u64(8),
  hw_error: u64(16),
});
