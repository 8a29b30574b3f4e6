import { blob, paddr, struct, u8, u32, u64 } from '../byte-layout.js';

/** The command buffers of the SEV-SNP ABI (sev-firmware.md 2.10, 2.11; `include/linux/psp-sev.h`). */

/** Bits of `flags`: 0 INIT_RMP, 1 LIST_PADDR_EN. */
export const SNP_INIT_EX = struct(64, { flags: u32(0), listPaddr: paddr(8) });

/** Bits of `flags`: 0 IOMMU_SNP_SHUTDOWN, 1 X86_SNP_SHUTDOWN. */
export const SNP_SHUTDOWN_EX = struct(8, { length: u32(0), flags: u32(4) });

export const SNP_PLATFORM_STATUS = struct(8, { statusPaddr: paddr(0) });

/** What SNP_PLATFORM_STATUS writes. Bits of `rmpFlags`: 0 IS_RMP_INIT. Bits of `flags`: 0 MASK_CHIP_ID, 1 MASK_CHIP_KEY, 2 VLEK_EN, 3 FEATURE_INFO. */
export const SNP_STATUS_PAGE = struct(32, {
  apiMajor: u8(0),
  apiMinor: u8(1),
  state: u8(2),
  rmpFlags: u8(3),
  build: u32(4),
  flags: u32(8),
  guestCount: u32(12),
  currentTcb: u64(16),
  reportedTcb: u64(24),
});

/** Bits of `flags`: 0 MASK_CHIP_ID, 1 MASK_CHIP_KEY. */
export const SNP_CONFIG = struct(64, { reportedTcb: u64(0), flags: u32(8) });

export const SNP_COMMIT = struct(4, { length: u32(0) });

export const SNP_VLEK_LOAD = struct(16, { length: u32(0), wrappedVersion: u8(4), wrappedPaddr: paddr(8) });

/** `ecxIn`: the sub-function. */
export const SNP_FEATURE_INFO = struct(16, { length: u32(0), ecxIn: u32(4), featureInfoPaddr: paddr(8) });

/** SNP_GCTX_CREATE and SNP_DECOMMISSION. */
export const SNP_GCTX = struct(8, { gctxPaddr: paddr(0) });

export const SNP_ACTIVATE = struct(12, { gctxPaddr: paddr(0), asid: u32(8) });

export const SNP_GUEST_STATUS = struct(16, { gctxPaddr: paddr(0), statusPaddr: paddr(8) });

/** What SNP_GUEST_STATUS writes. */
export const SNP_GUEST_STATUS_PAGE = struct(32, { policy: u64(0), asid: u32(8), state: u8(12) });

/** Bits of `flags`: 0 MA_EN, 1 IMI_EN. */
export const SNP_LAUNCH_START = struct(48, {
  gctxPaddr: paddr(0),
  policy: u64(8),
  maGctxPaddr: paddr(16),
  flags: u32(24),
  desiredTscKhz: u32(28),
  gosvw: blob(32, 16),
});

/** Bits of `flags`: 0 PAGE_SIZE (1: 2 MiB), 3:1 PAGE_TYPE, 4 IMI_PAGE. */
export const SNP_LAUNCH_UPDATE = struct(32, {
  gctxPaddr: paddr(0),
  flags: u32(8),
  pagePaddr: paddr(16),
  vmpl1Permissions: u8(25),
  vmpl2Permissions: u8(26),
  vmpl3Permissions: u8(27),
});

/** Bits of `flags`: 0 ID_BLOCK_EN, 1 AUTH_KEY_EN, 2 VCEK_DIS. */
export const SNP_LAUNCH_FINISH = struct(64, {
  gctxPaddr: paddr(0),
  idBlockPaddr: paddr(8),
  idAuthPaddr: paddr(16),
  flags: u8(24),
  hostData: blob(32, 32),
});

export const SNP_GUEST_REQUEST = struct(24, { gctxPaddr: paddr(0), requestPaddr: paddr(8), responsePaddr: paddr(16) });

export const SNP_DBG = struct(24, { gctxPaddr: paddr(0), srcPaddr: paddr(8), dstPaddr: paddr(16) });

/** SNP_PAGE_RECLAIM and SNP_PAGE_UNSMASH: bit 0 of the address is the page size (1: 2 MiB). */
export const SNP_PAGE = struct(8, { pagePaddr: paddr(0) });

export const SNP_PAGE_MD_INIT = struct(16, { gctxPaddr: paddr(0), pagePaddr: paddr(8) });

/** Bits of `flags`: 0 PAGE_SIZE (1: 2 MiB), 2:1 PAGE_TYPE (0 data, 1 metadata, 2 VMSA), 4 ROOT_MDATA_EN. */
export const SNP_PAGE_SWAP_OUT = struct(48, {
  gctxPaddr: paddr(0),
  srcPaddr: paddr(8),
  dstPaddr: paddr(16),
  mdataPaddr: paddr(24),
  softwareData: u64(32),
  flags: u32(40),
});

/** As SNP_PAGE_SWAP_OUT; bit 3 of `flags`: SWAP_IN_PLACE. */
export const SNP_PAGE_SWAP_IN = struct(48, {
  gctxPaddr: paddr(0),
  srcPaddr: paddr(8),
  dstPaddr: paddr(16),
  mdataPaddr: paddr(24),
  flags: u32(40),
});

/** Bit 0 of `flags`: page size. */
export const SNP_PAGE_MOVE = struct(32, { gctxPaddr: paddr(0), flags: u32(8), srcPaddr: paddr(16), dstPaddr: paddr(24) });
