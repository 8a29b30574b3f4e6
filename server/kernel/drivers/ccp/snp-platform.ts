import { COMMAND } from '../../../hardware/amd/command-ids.js';
import type { Range } from '../../../hardware/amd/firmware-memory.js';
import type { AmdPlatform } from '../../../hardware/amd/platform.js';
import { type ApiVersion, isAtLeast } from '../../../hardware/amd/policy.js';
import { RMP_RESULT } from '../../../hardware/amd/rmp.js';
import {
  SNP_FEATURE_INFO,
  SNP_INIT_EX,
  SNP_PAGE,
  SNP_PLATFORM_STATUS,
  SNP_SHUTDOWN_EX,
  SNP_STATUS_PAGE,
} from '../../../hardware/amd/snp/command-buffers.js';
import { FEATURE, FEATURE_INFO } from '../../../hardware/amd/snp/feature-info.js';
import { SNP_POLICY } from '../../../hardware/amd/snp/snp-policy.js';
import { STATUS, type Status } from '../../../hardware/amd/status.js';
import type { Dram, Frame } from '../../../hardware/dram.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../hardware/units.js';
import { type Failure, failed, type Result } from '../../failure.js';
import { notInitialised } from './firmware-failure.js';
import type { Psp } from './psp.js';

/** SNP_INIT_EX: INIT_RMP, an empty reverse map table. */
const INIT_RMP = 1 << 0;
/** SNP_SHUTDOWN_EX: the IOMMU stops to enforce the table. */
const IOMMU_SNP_SHUTDOWN = 1 << 0;
/** The CPUs stop to consult it. */
const X86_SNP_SHUTDOWN = 1 << 1;
/** SNP_PLATFORM_STATUS: there is SNP_FEATURE_INFO. */
const FEATURE_INFO_AVAILABLE = 1 << 3;

/** `SNP_POLICY_MASK_BASE`: what every firmware knows that Linux takes: the version of the ABI, and these bits. */
const POLICY_BASE =
  0xffffn | SNP_POLICY.SMT | SNP_POLICY.RESERVED_ONE | SNP_POLICY.MIGRATE_MA | SNP_POLICY.DEBUG | SNP_POLICY.SINGLE_SOCKET;

/** The bits that a feature of the firmware adds. */
const POLICY_OF_FEATURE: readonly (readonly [feature: number, policy: bigint])[] = [
  [FEATURE.RAPL_DIS, SNP_POLICY.RAPL_DIS],
  [FEATURE.CIPHERTEXT_HIDING, SNP_POLICY.CIPHERTEXT_HIDING_DRAM],
  [FEATURE.AES_256_XTS_POLICY, SNP_POLICY.MEM_AES_256_XTS],
  [FEATURE.CXL_ALLOW_POLICY, SNP_POLICY.CXL_ALLOW],
];

/** The firmware's version from which guests can forbid to swap their pages. */
const PAGE_SWAP_DISABLE_SINCE = { major: 1, minor: 58 } as const;

/** `sev->snp_plat_status` and `sev->snp_feat_info_0`. */
interface PlatformData {
  readonly version: ApiVersion;
  /** ECX of SNP_FEATURE_INFO's sub-function 0; null where there is no such command. */
  readonly features: number | null;
}

/** The reverse map table has this for each CPU's book-keeping, and an entry of 16 bytes for each page. */
const RMPTABLE_CPU_BOOKKEEPING = 0x4000;
const RMP_ENTRY_SIZE = 16;

/**
 * The SEV-SNP half of `sev-dev.c`: SNP_INIT_EX, SNP_SHUTDOWN_EX, and pages that belong to the firmware while it writes to
 * them.
 */
export class SnpPlatformDriver {
  /** `cmd_buf_backup`: the command that takes pages back cannot have its buffer in one that the firmware still has. */
  private readonly backup: Frame;
  private data: PlatformData = { version: { major: 0, minor: 0 }, features: null };

  constructor(
    private readonly psp: Psp,
    private readonly amd: AmdPlatform,
    private readonly dram: Dram,
    private readonly cpus: number,
  ) {
    const backup = dram.allocate();
    if (backup === null) throw new Error('no memory at boot');
    this.backup = backup;
    this.enable();
  }

  /** `sev->snp_initialized`. */
  get initialised(): boolean {
    return this.amd.processor.snpState === 'init';
  }

  /** `snp_get_platform_data`, at probe: what the firmware is and has. Its answers go to a page of the host's, as long as SNP is not there. */
  getPlatformData(): void {
    const page = this.psp.buffers.blobPage(0);
    const query = new Uint8Array(SNP_PLATFORM_STATUS.size);
    SNP_PLATFORM_STATUS.statusPaddr.set(query, page.hpa);
    if (this.psp.command('SNP_PLATFORM_STATUS', query) !== STATUS.SUCCESS) return;
    const status = page.view(null);
    const version = { major: SNP_STATUS_PAGE.apiMajor.get(status), minor: SNP_STATUS_PAGE.apiMinor.get(status) };
    const available = (SNP_STATUS_PAGE.flags.get(status) & FEATURE_INFO_AVAILABLE) !== 0;
    this.data = { version, features: available ? this.featureInfo(page) : null };
  }

  /** `sev_get_snp_policy_bits`: what a guest's policy may ask for. */
  policyBits(): bigint {
    const { version, features } = this.data;
    if (features === null) return POLICY_BASE;
    const swap = isAtLeast(version, PAGE_SWAP_DISABLE_SINCE) ? SNP_POLICY.PAGE_SWAP_DISABLE : 0n;
    return POLICY_OF_FEATURE.reduce(
      (bits, [feature, bit]) => ((features & feature) === 0 ? bits : bits | bit),
      POLICY_BASE | swap,
    );
  }

  /** `__sev_snp_init_locked`: SNP_INIT_EX, and the flush that must come before the first guest is activated. */
  init(): Failure | null {
    if (this.initialised) return null;
    for (let cpu = 0; cpu < this.cpus; cpu++) this.amd.snpMsrs.write(cpu, { hsavePa: 0 });
    this.amd.wbinvdOnAllCpus();
    const buffer = new Uint8Array(SNP_INIT_EX.size);
    SNP_INIT_EX.flags.set(buffer, INIT_RMP);
    return this.psp.run('SNP_INIT_EX', buffer, '__sev_snp_init_locked') ?? this.dfFlush();
  }

  /** `__sev_snp_shutdown_locked`: destroys every SNP guest that is left. */
  shutdown(): void {
    if (!this.initialised) return;
    this.amd.wbinvdOnAllCpus();
    if (this.shutdownEx() !== STATUS.DFFLUSH_REQUIRED) return;
    this.amd.wbinvdOnAllCpus();
    this.psp.command('SNP_DF_FLUSH');
    this.shutdownEx();
  }

  /** Runs `body` with SNP initialised, and shuts it down again if it was not before (`snp_move_to_init_state`). */
  withInit<T>(body: () => Result<T>): Result<T> {
    const before = this.initialised;
    const failure = this.init();
    if (failed(failure)) return notInitialised(failure);
    const result = body();
    if (!before) this.shutdown();
    return result;
  }

  /** `snp_map_cmd_buf_desc_list`: the pages of some ranges of memory are the firmware's until they are reclaimed. */
  lend(ranges: readonly Range[]): readonly Frame[] {
    const pages = new Set<Frame>();
    for (const [start, length] of ranges)
      for (let at = start - (start % PAGE_SIZE); at < start + length; at += PAGE_SIZE) {
        const page = this.dram.at(hpaToPfn(hpa(at)));
        if (page !== undefined) pages.add(page);
      }
    for (const page of pages)
      if (!this.markFirmware(page)) throw new Error(`page ${page.pfn} cannot be given to the firmware: it is not the host's`);
    return [...pages];
  }

  /** `rmp_mark_pages_firmware`: the firmware may write to a page of the host's. */
  markFirmware(page: Frame): boolean {
    return this.rmpupdate(page, true);
  }

  /** `snp_reclaim_pages`: the page is the host's again. A page that the firmware has written to is in the Reclaim state already. */
  reclaim(page: Frame): boolean {
    const buffer = new Uint8Array(SNP_PAGE.size);
    SNP_PAGE.pagePaddr.set(buffer, page.hpa);
    this.backup.viewForWrite(null).set(buffer);
    this.amd.processor.issue(COMMAND.SNP_PAGE_RECLAIM, this.backup.hpa);
    return this.rmpupdate(page, false);
  }

  private featureInfo(page: Frame): number | null {
    const query = new Uint8Array(SNP_FEATURE_INFO.size);
    SNP_FEATURE_INFO.length.set(query, SNP_FEATURE_INFO.size);
    SNP_FEATURE_INFO.featureInfoPaddr.set(query, page.hpa);
    return this.psp.command('SNP_FEATURE_INFO', query) === STATUS.SUCCESS ? FEATURE_INFO.ecx.get(page.view(null)) : null;
  }

  private rmpupdate({ pfn }: Frame, firmware: boolean): boolean {
    const update = { assigned: firmware, immutable: firmware, size: '4k', asid: asid(0), gpa: gpa(0) } as const;
    return this.amd.rmp.rmpupdate(pfn, update) === RMP_RESULT.OK;
  }

  private shutdownEx(): Status {
    const buffer = new Uint8Array(SNP_SHUTDOWN_EX.size);
    SNP_SHUTDOWN_EX.length.set(buffer, SNP_SHUTDOWN_EX.size);
    const x86 = ((this.data.features ?? 0) & FEATURE.X86_SNP_SHUTDOWN) === 0 ? 0 : X86_SNP_SHUTDOWN;
    SNP_SHUTDOWN_EX.flags.set(buffer, IOMMU_SNP_SHUTDOWN | x86);
    return this.psp.command('SNP_SHUTDOWN_EX', buffer);
  }

  private dfFlush(): Failure | null {
    this.amd.wbinvdOnAllCpus();
    return this.psp.run('SNP_DF_FLUSH', null, '__sev_snp_init_locked');
  }

  /** `snp_rmptable_init`, at boot: where the BIOS has put the table, and the bits of SYSCFG that make CPUs consult it. */
  private enable(): void {
    const { end } = this.dram;
    const rmpBase = end * PAGE_SIZE;
    const rmpEnd = rmpBase + RMPTABLE_CPU_BOOKKEEPING + end * RMP_ENTRY_SIZE - 1;
    for (let cpu = 0; cpu < this.cpus; cpu++) this.amd.snpMsrs.write(cpu, { enabled: true, rmpBase, rmpEnd });
  }
}
