import type { CommandName } from './amd/command-ids.js';

/**
 * The primitives of which simulated time is made. Whoever does one of them charges it; nobody charges time. A policy
 * is compared by these counts, and by nanoseconds only together with the table below.
 */
export type Primitive = CpuPrimitive | KernelPrimitive | PspPrimitive;

/** What a CPU does; `wbinvd` counts once for each CPU that executes it. */
type CpuPrimitive = 'vm_entry' | 'vm_exit' | 'ipi' | 'tlb_flush' | 'wbinvd' | 'clflush_page' | 'rmpupdate';

/** What the kernel does. `page_copied` and `page_zeroed` count 4 KiB each. */
type KernelPrimitive =
  | 'pte_zapped'
  | 'page_table_freed'
  | 'page_allocated'
  | 'page_freed'
  | 'page_pinned'
  | 'page_unpinned'
  | 'page_copied'
  | 'page_zeroed'
  | 'srcu_grace_period'
  | 'memslot_commit'
  | 'vcpu_mutex';

/** What the AMD Secure Processor does: the fixed part of each command, and the work on each KiB. */
type PspPrimitive = `psp_${CommandName}` | 'psp_kib_encrypted' | 'psp_kib_digested';

export interface Cost {
  readonly nanoseconds: number;
  /** Where the number comes from; `assumed` when it is only of the right order of magnitude. */
  readonly source: string;
}

const assumed = (nanoseconds: number): Cost => ({ nanoseconds, source: 'assumed' });

/** The cost of each primitive. Every number here can be scaled by a factor when a ledger is created. */
export const COSTS: Readonly<Record<Primitive, Cost>> = {
  vm_entry: assumed(600),
  vm_exit: assumed(600),
  ipi: assumed(2_000),
  tlb_flush: assumed(1_000),
  wbinvd: {
    nanoseconds: 1_000_000,
    source: 'assumed: writing back tens of MiB of last-level cache takes on the order of a millisecond',
  },
  clflush_page: assumed(1_500),
  rmpupdate: assumed(1_500),

  pte_zapped: assumed(20),
  page_table_freed: assumed(150),
  page_allocated: assumed(150),
  page_freed: assumed(100),
  page_pinned: assumed(100),
  page_unpinned: assumed(60),
  page_copied: assumed(400),
  page_zeroed: assumed(200),
  srcu_grace_period: {
    nanoseconds: 5_000_000,
    source: 'assumed: a memslot deletion measured on a real kernel takes between 10 us and 8 ms',
  },
  memslot_commit: { nanoseconds: 15_000, source: 'half of a measured add and delete of a 4 KiB memslot, 30 us' },
  vcpu_mutex: assumed(50),

  psp_kib_encrypted: { nanoseconds: 500, source: 'assumed: 2 GB/s through the copy engine' },
  psp_kib_digested: { nanoseconds: 1_000, source: 'assumed: 1 GB/s of SHA-256' },
  psp_INIT: assumed(100_000_000),
  psp_INIT_EX: assumed(100_000_000),
  psp_SHUTDOWN: assumed(10_000_000),
  psp_PLATFORM_RESET: assumed(50_000_000),
  psp_PLATFORM_STATUS: assumed(50_000),
  psp_PEK_GEN: assumed(50_000_000),
  psp_PEK_CSR: assumed(1_000_000),
  psp_PEK_CERT_IMPORT: assumed(50_000_000),
  psp_PDH_CERT_EXPORT: assumed(1_000_000),
  psp_PDH_GEN: assumed(30_000_000),
  psp_DF_FLUSH: assumed(500_000),
  psp_DOWNLOAD_FIRMWARE: assumed(500_000_000),
  psp_GET_ID: assumed(50_000),
  psp_NOP: assumed(20_000),
  psp_DECOMMISSION: assumed(100_000),
  psp_ACTIVATE: assumed(200_000),
  psp_DEACTIVATE: assumed(200_000),
  psp_GUEST_STATUS: assumed(50_000),
  psp_LAUNCH_START: assumed(5_000_000),
  psp_LAUNCH_UPDATE_DATA: assumed(50_000),
  psp_LAUNCH_UPDATE_VMSA: assumed(50_000),
  psp_LAUNCH_MEASURE: assumed(100_000),
  psp_LAUNCH_SECRET: assumed(100_000),
  psp_LAUNCH_FINISH: assumed(100_000),
  psp_ATTESTATION: assumed(10_000_000),
  psp_SEND_START: assumed(30_000_000),
  psp_SEND_UPDATE_DATA: assumed(50_000),
  psp_SEND_UPDATE_VMSA: assumed(50_000),
  psp_SEND_FINISH: assumed(100_000),
  psp_SEND_CANCEL: assumed(100_000),
  psp_RECEIVE_START: assumed(10_000_000),
  psp_RECEIVE_UPDATE_DATA: assumed(50_000),
  psp_RECEIVE_UPDATE_VMSA: assumed(50_000),
  psp_RECEIVE_FINISH: assumed(100_000),
  psp_DBG_DECRYPT: assumed(50_000),
  psp_DBG_ENCRYPT: assumed(50_000),
  psp_SNP_INIT: assumed(500_000_000),
  psp_SNP_SHUTDOWN: assumed(50_000_000),
  psp_SNP_PLATFORM_STATUS: assumed(50_000),
  psp_SNP_DF_FLUSH: assumed(500_000),
  psp_SNP_INIT_EX: assumed(500_000_000),
  psp_SNP_SHUTDOWN_EX: assumed(50_000_000),
  psp_SNP_DECOMMISSION: assumed(200_000),
  psp_SNP_ACTIVATE: assumed(200_000),
  psp_SNP_GUEST_STATUS: assumed(50_000),
  psp_SNP_GCTX_CREATE: assumed(100_000),
  psp_SNP_GUEST_REQUEST: assumed(10_000_000),
  psp_SNP_LAUNCH_START: assumed(1_000_000),
  psp_SNP_LAUNCH_UPDATE: assumed(50_000),
  psp_SNP_LAUNCH_FINISH: assumed(10_000_000),
  psp_SNP_DBG_DECRYPT: assumed(50_000),
  psp_SNP_DBG_ENCRYPT: assumed(50_000),
  psp_SNP_PAGE_SWAP_OUT: assumed(50_000),
  psp_SNP_PAGE_SWAP_IN: assumed(50_000),
  psp_SNP_PAGE_MD_INIT: assumed(20_000),
  psp_SNP_PAGE_MOVE: assumed(50_000),
  psp_SNP_PAGE_RECLAIM: assumed(20_000),
  psp_SNP_PAGE_UNSMASH: assumed(20_000),
  psp_SNP_CONFIG: assumed(50_000),
  psp_SNP_COMMIT: assumed(100_000),
  psp_SNP_VLEK_LOAD: assumed(1_000_000),
  psp_SNP_FEATURE_INFO: assumed(50_000),
};

/** Charges `count` (default 1) of a primitive to whoever keeps the ledger. */
export type Charge = (primitive: Primitive, count?: number) => void;

/** Factors by which single costs are scaled, for example `{ wbinvd: 2 }`; 1 where absent. */
export type CostFactors = Readonly<Partial<Record<Primitive, number>>>;

/** What has been charged so far. Charging only counts; time is computed when it is asked for. */
export class CostLedger {
  private readonly counted = new Map<Primitive, number>();

  constructor(private readonly factors: CostFactors) {}

  readonly charge: Charge = (primitive, count = 1) => {
    this.counted.set(primitive, (this.counted.get(primitive) ?? 0) + count);
  };

  /** How often each primitive has been charged; absent: never. */
  get counts(): ReadonlyMap<Primitive, number> {
    return this.counted;
  }

  /** Simulated time so far. */
  get nanoseconds(): number {
    let sum = 0;
    for (const [primitive, count] of this.counted) sum += count * COSTS[primitive].nanoseconds * (this.factors[primitive] ?? 1);
    return sum;
  }
}

export const createCostLedger = (factors: CostFactors = {}): CostLedger => new CostLedger(factors);
