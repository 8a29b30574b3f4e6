import { bytes, struct, u8, u16, u32, u64 } from './struct.js';

/**
 * Structures of KVM_MEMORY_ENCRYPT_OP on AMD hosts (arch/x86/include/uapi/asm/kvm.h) and of `/dev/sev`
 * (include/uapi/linux/psp-sev.h).
 */

/** `kvm_sev_cmd.id`. */
export const KVM_SEV_CMD = {
  INIT: 0,
  ES_INIT: 1,
  LAUNCH_START: 2,
  LAUNCH_UPDATE_DATA: 3,
  LAUNCH_UPDATE_VMSA: 4,
  LAUNCH_SECRET: 5,
  LAUNCH_MEASURE: 6,
  LAUNCH_FINISH: 7,
  SEND_START: 8,
  SEND_UPDATE_DATA: 9,
  SEND_UPDATE_VMSA: 10,
  SEND_FINISH: 11,
  RECEIVE_START: 12,
  RECEIVE_UPDATE_DATA: 13,
  RECEIVE_UPDATE_VMSA: 14,
  RECEIVE_FINISH: 15,
  GUEST_STATUS: 16,
  DBG_DECRYPT: 17,
  DBG_ENCRYPT: 18,
  CERT_EXPORT: 19,
  GET_ATTESTATION_REPORT: 20,
  SEND_CANCEL: 21,
  INIT2: 22,
  SNP_LAUNCH_START: 100,
  SNP_LAUNCH_UPDATE: 101,
  SNP_LAUNCH_FINISH: 102,
  SNP_ENABLE_REQ_CERTS: 103,
} as const;
export type KvmSevCmdName = keyof typeof KVM_SEV_CMD;

/** `sev_issue_cmd.cmd`. */
export const SEV_USER_CMD = {
  FACTORY_RESET: 0,
  PLATFORM_STATUS: 1,
  PEK_GEN: 2,
  PEK_CSR: 3,
  PDH_GEN: 4,
  PDH_CERT_EXPORT: 5,
  PEK_CERT_IMPORT: 6,
  GET_ID: 7,
  GET_ID2: 8,
  SNP_PLATFORM_STATUS: 9,
  SNP_COMMIT: 10,
  SNP_SET_CONFIG: 11,
  SNP_VLEK_LOAD: 12,
} as const;
export type SevUserCmdName = keyof typeof SEV_USER_CMD;

/** `kvm_sev_snp_launch_update.type`. */
export const KVM_SEV_SNP_PAGE_TYPE = { NORMAL: 1, ZERO: 3, UNMEASURED: 4, SECRETS: 5, CPUID: 6 } as const;

/** `kvm_sev_cmd.error` where the firmware was not called. */
export const SEV_RET_NO_FW_CALL = 0xffff_ffff;

/** KVM_MEMORY_ENCRYPT_OP. `data`: user address of the command's own structure; `error`: the firmware's status. */
export const kvm_sev_cmd = struct('kvm_sev_cmd', 24, {
  id: u32(0),
  pad0: u32(4),
  data: u64(8),
  error: u32(16),
  sev_fd: u32(20),
});

/** KVM_SEV_INIT2. */
export const kvm_sev_init = struct('kvm_sev_init', 48, {
  vmsa_features: u64(0),
  flags: u32(8),
  ghcb_version: u16(12),
});

/** KVM_SEV_LAUNCH_START; `handle` is written. */
export const kvm_sev_launch_start = struct('kvm_sev_launch_start', 40, {
  handle: u32(0),
  policy: u32(4),
  dh_uaddr: u64(8),
  dh_len: u32(16),
  session_uaddr: u64(24),
  session_len: u32(32),
});

/** KVM_SEV_LAUNCH_UPDATE_DATA. */
export const kvm_sev_launch_update_data = struct('kvm_sev_launch_update_data', 16, {
  uaddr: u64(0),
  len: u32(8),
});

/** KVM_SEV_LAUNCH_SECRET. */
export const kvm_sev_launch_secret = struct('kvm_sev_launch_secret', 48, {
  hdr_uaddr: u64(0),
  hdr_len: u32(8),
  guest_uaddr: u64(16),
  guest_len: u32(24),
  trans_uaddr: u64(32),
  trans_len: u32(40),
});

/** KVM_SEV_LAUNCH_MEASURE; `len` is written, also when it was too short. */
export const kvm_sev_launch_measure = struct('kvm_sev_launch_measure', 16, {
  uaddr: u64(0),
  len: u32(8),
});

/** KVM_SEV_GUEST_STATUS. */
export const kvm_sev_guest_status = struct('kvm_sev_guest_status', 12, {
  handle: u32(0),
  policy: u32(4),
  state: u32(8),
});

/** KVM_SEV_DBG_DECRYPT, KVM_SEV_DBG_ENCRYPT. */
export const kvm_sev_dbg = struct('kvm_sev_dbg', 24, {
  src_uaddr: u64(0),
  dst_uaddr: u64(8),
  len: u32(16),
});

/** KVM_SEV_GET_ATTESTATION_REPORT. */
export const kvm_sev_attestation_report = struct('kvm_sev_attestation_report', 32, {
  mnonce: bytes(0, 16),
  uaddr: u64(16),
  len: u32(24),
});

/** KVM_SEV_SEND_START. */
export const kvm_sev_send_start = struct('kvm_sev_send_start', 72, {
  policy: u32(0),
  pdh_cert_uaddr: u64(8),
  pdh_cert_len: u32(16),
  plat_certs_uaddr: u64(24),
  plat_certs_len: u32(32),
  amd_certs_uaddr: u64(40),
  amd_certs_len: u32(48),
  session_uaddr: u64(56),
  session_len: u32(64),
});

/** KVM_SEV_SEND_UPDATE_DATA. */
export const kvm_sev_send_update_data = struct('kvm_sev_send_update_data', 48, {
  hdr_uaddr: u64(0),
  hdr_len: u32(8),
  guest_uaddr: u64(16),
  guest_len: u32(24),
  trans_uaddr: u64(32),
  trans_len: u32(40),
});

/** KVM_SEV_RECEIVE_START; `handle` is written. */
export const kvm_sev_receive_start = struct('kvm_sev_receive_start', 40, {
  handle: u32(0),
  policy: u32(4),
  pdh_uaddr: u64(8),
  pdh_len: u32(16),
  session_uaddr: u64(24),
  session_len: u32(32),
});

/** KVM_SEV_RECEIVE_UPDATE_DATA. */
export const kvm_sev_receive_update_data = struct('kvm_sev_receive_update_data', 48, {
  hdr_uaddr: u64(0),
  hdr_len: u32(8),
  guest_uaddr: u64(16),
  guest_len: u32(24),
  trans_uaddr: u64(32),
  trans_len: u32(40),
});

/** KVM_SEV_SNP_LAUNCH_START. */
export const kvm_sev_snp_launch_start = struct('kvm_sev_snp_launch_start', 64, {
  policy: u64(0),
  gosvw: bytes(8, 16),
  flags: u16(24),
});

/** KVM_SEV_SNP_LAUNCH_UPDATE; what is left to do is written back. */
export const kvm_sev_snp_launch_update = struct('kvm_sev_snp_launch_update', 64, {
  gfn_start: u64(0),
  uaddr: u64(8),
  len: u64(16),
  type: u8(24),
  flags: u16(26),
});

/** KVM_SEV_SNP_LAUNCH_FINISH. */
export const kvm_sev_snp_launch_finish = struct('kvm_sev_snp_launch_finish', 88, {
  id_block_uaddr: u64(0),
  id_auth_uaddr: u64(8),
  id_block_en: u8(16),
  auth_key_en: u8(17),
  vcek_disabled: u8(18),
  host_data: bytes(19, 32),
  flags: u16(54),
});

/** SEV_ISSUE_CMD on `/dev/sev`; packed. `data`: user address of the command's own structure. */
export const sev_issue_cmd = struct('sev_issue_cmd', 16, {
  cmd: u32(0),
  data: u64(4),
  error: u32(12),
});

/** SEV_PLATFORM_STATUS; packed. */
export const sev_user_data_status = struct('sev_user_data_status', 12, {
  api_major: u8(0),
  api_minor: u8(1),
  state: u8(2),
  flags: u32(3),
  build: u8(7),
  guest_count: u32(8),
});

/** SEV_PEK_CSR; packed. */
export const sev_user_data_pek_csr = struct('sev_user_data_pek_csr', 12, {
  address: u64(0),
  length: u32(8),
});

/** SEV_PEK_CERT_IMPORT; packed. */
export const sev_user_data_pek_cert_import = struct('sev_user_data_pek_cert_import', 24, {
  pek_cert_address: u64(0),
  pek_cert_len: u32(8),
  oca_cert_address: u64(12),
  oca_cert_len: u32(20),
});

/** SEV_PDH_CERT_EXPORT; packed. */
export const sev_user_data_pdh_cert_export = struct('sev_user_data_pdh_cert_export', 24, {
  pdh_cert_address: u64(0),
  pdh_cert_len: u32(8),
  cert_chain_address: u64(12),
  cert_chain_len: u32(20),
});

/** SEV_GET_ID, of two sockets; deprecated. */
export const sev_user_data_get_id = struct('sev_user_data_get_id', 128, {
  socket1: bytes(0, 64),
  socket2: bytes(64, 64),
});

/** SEV_GET_ID2; packed. */
export const sev_user_data_get_id2 = struct('sev_user_data_get_id2', 12, {
  address: u64(0),
  length: u32(8),
});

/**
 * SNP_PLATFORM_STATUS; packed. Bits of `rmp_flags`: 0 IS_RMP_INIT. Bits of `flags`: 0 MASK_CHIP_ID, 1 MASK_CHIP_KEY, 2 VLEK_EN.
 */
export const sev_user_data_snp_status = struct('sev_user_data_snp_status', 32, {
  api_major: u8(0),
  api_minor: u8(1),
  state: u8(2),
  rmp_flags: u8(3),
  build_id: u32(4),
  flags: u32(8),
  guest_count: u32(12),
  current_tcb_version: u64(16),
  reported_tcb_version: u64(24),
});

/** SNP_SET_CONFIG; packed. Bits of `flags`: 0 MASK_CHIP_ID, 1 MASK_CHIP_KEY. */
export const sev_user_data_snp_config = struct('sev_user_data_snp_config', 64, {
  reported_tcb: u64(0),
  flags: u32(8),
});

/** SNP_VLEK_LOAD; packed. `len`: of this structure. */
export const sev_user_data_snp_vlek_load = struct('sev_user_data_snp_vlek_load', 16, {
  len: u32(0),
  vlek_wrapped_version: u8(4),
  vlek_wrapped_address: u64(8),
});

/** `sizeof(struct sev_user_data_snp_wrapped_vlek_hashstick)`. */
export const SNP_WRAPPED_VLEK_HASHSTICK_SIZE = 432;
