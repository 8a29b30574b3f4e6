import { blob, paddr, struct, u8, u32 } from './byte-layout.js';

/**
 * The command buffers of the SEV API (sev-firmware.md 2.4 to 2.8; `include/linux/psp-sev.h`). `..Paddr` fields are host
 * physical addresses, which may carry the C-bit; `..Length` fields count bytes.
 */

export const INIT = struct(20, { options: u32(0), tmrPaddr: paddr(8), tmrLength: u32(16) });

export const INIT_EX = struct(36, {
  length: u32(0),
  options: u32(4),
  tmrPaddr: paddr(8),
  tmrLength: u32(16),
  nvPaddr: paddr(24),
  nvLength: u32(32),
});

/** Bit 0 of the options of INIT and INIT_EX: guests may be SEV-ES. */
export const INIT_OPTION_ES = 1;

/** All output. Bit 0 of `owner`: externally owned. Bit 0 of `config`: initialised for SEV-ES; its top byte is `build`. */
export const PLATFORM_STATUS = struct(12, {
  apiMajor: u8(0),
  apiMinor: u8(1),
  state: u8(2),
  owner: u8(3),
  config: u8(4),
  build: u8(7),
  guestCount: u32(8),
});

export const PEK_CSR = struct(12, { csrPaddr: paddr(0), csrLength: u32(8) });

export const PEK_CERT_IMPORT = struct(28, {
  pekCertPaddr: paddr(0),
  pekCertLength: u32(8),
  ocaCertPaddr: paddr(16),
  ocaCertLength: u32(24),
});

export const PDH_CERT_EXPORT = struct(28, {
  pdhCertPaddr: paddr(0),
  pdhCertLength: u32(8),
  certsPaddr: paddr(16),
  certsLength: u32(24),
});

export const DOWNLOAD_FIRMWARE = struct(12, { fwPaddr: paddr(0), fwLength: u32(8) });

export const GET_ID = struct(12, { idPaddr: paddr(0), idLength: u32(8) });

/** DECOMMISSION, DEACTIVATE, LAUNCH_FINISH, SEND_FINISH, SEND_CANCEL, RECEIVE_FINISH. */
export const GUEST_HANDLE = struct(4, { handle: u32(0) });

export const ACTIVATE = struct(8, { handle: u32(0), asid: u32(4) });

export const GUEST_STATUS = struct(13, { handle: u32(0), policy: u32(4), asid: u32(8), state: u8(12) });

export const LAUNCH_START = struct(36, {
  handle: u32(0),
  policy: u32(4),
  dhCertPaddr: paddr(8),
  dhCertLength: u32(16),
  sessionPaddr: paddr(24),
  sessionLength: u32(32),
});

/** LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA. */
export const LAUNCH_UPDATE = struct(20, { handle: u32(0), paddr: paddr(8), length: u32(16) });

export const LAUNCH_MEASURE = struct(20, { handle: u32(0), measurePaddr: paddr(8), measureLength: u32(16) });

/** LAUNCH_SECRET, SEND_UPDATE_DATA, SEND_UPDATE_VMSA, RECEIVE_UPDATE_DATA, RECEIVE_UPDATE_VMSA. */
export const PACKET = struct(52, {
  handle: u32(0),
  hdrPaddr: paddr(8),
  hdrLength: u32(16),
  guestPaddr: paddr(24),
  guestLength: u32(32),
  transPaddr: paddr(40),
  transLength: u32(48),
});

export const ATTESTATION = struct(36, { handle: u32(0), paddr: paddr(8), mnonce: blob(16, 16), length: u32(32) });

export const SEND_START = struct(68, {
  handle: u32(0),
  policy: u32(4),
  pdhCertPaddr: paddr(8),
  pdhCertLength: u32(16),
  platCertsPaddr: paddr(24),
  platCertsLength: u32(32),
  amdCertsPaddr: paddr(40),
  amdCertsLength: u32(48),
  sessionPaddr: paddr(56),
  sessionLength: u32(64),
});

export const RECEIVE_START = struct(36, {
  handle: u32(0),
  policy: u32(4),
  pdhCertPaddr: paddr(8),
  pdhCertLength: u32(16),
  sessionPaddr: paddr(24),
  sessionLength: u32(32),
});

/** DBG_DECRYPT and DBG_ENCRYPT. */
export const DBG = struct(28, { handle: u32(0), srcPaddr: paddr(8), dstPaddr: paddr(16), length: u32(24) });
