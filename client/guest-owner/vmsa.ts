import { viewOf } from './bytes.js';

/** What of a vCPU's save area is not the same at every reset. */
export interface VmsaOptions {
  /** First instruction, physical: 0xfffffff0 for the boot processor. */
  readonly eip: number;
  /** SEV_FEATURES: bit 0 SEV-SNP, bit 3 restricted injection, bit 5 debug swap; 0 for SEV-ES. */
  readonly sevFeatures: bigint;
  /** EAX of CPUID leaf 1, which RDX holds at reset. */
  readonly cpuSignature: number;
}

/** CPUID leaf 1 EAX of QEMU's EPYC CPU models. */
export const CPU_SIGNATURE = {
  EPYC: 0x800f12,
  'EPYC-Rome': 0x830f10,
  'EPYC-Milan': 0xa00f11,
  'EPYC-Genoa': 0xa10f10,
} as const;

export const BSP_EIP = 0xffff_fff0;
const PAGE = 4096;
const DATA_SEGMENTS = [0x000, 0x020, 0x030, 0x040, 0x050];

/** The save area of a vCPU at reset as QEMU and KVM make it; every other byte is zero (APM volume 2, table B-4). */
export const createVmsa = ({ eip, sevFeatures, cpuSignature }: VmsaOptions): Uint8Array => {
  const page = new Uint8Array(PAGE);
  const view = viewOf(page);
  const segment = (offset: number, selector: number, attributes: number, base: number): void => {
    view.setUint16(offset, selector, true);
    view.setUint16(offset + 2, attributes, true);
    view.setUint32(offset + 4, 0xffff, true);
    view.setBigUint64(offset + 8, BigInt(base), true);
  };
  const u64 = (offset: number, value: bigint): void => view.setBigUint64(offset, value, true);
  for (const offset of DATA_SEGMENTS) segment(offset, 0, 0x93, 0);
  segment(0x010, 0xf000, 0x9b, (eip & 0xffff_0000) >>> 0);
  segment(0x060, 0, 0, 0); // GDTR
  segment(0x070, 0, 0x82, 0); // LDTR
  segment(0x080, 0, 0, 0); // IDTR
  segment(0x090, 0, 0x8b, 0); // TR
  u64(0x0d0, 0x1000n); // EFER: SVME
  u64(0x148, 0x40n); // CR4: MCE
  u64(0x158, 0x10n); // CR0: ET
  u64(0x160, 0x400n); // DR7
  u64(0x168, 0xffff_0ff0n); // DR6
  u64(0x170, 2n); // RFLAGS
  u64(0x178, BigInt(eip & 0xffff)); // RIP
  u64(0x268, 0x0007_0406_0007_0406n); // G_PAT
  u64(0x310, BigInt(cpuSignature)); // RDX
  u64(0x3b0, sevFeatures);
  u64(0x3e8, 1n); // XCR0: x87
  view.setUint32(0x408, 0x1f80, true); // MXCSR
  view.setUint16(0x410, 0x037f, true); // FCW
  return page;
};
