import { COMMAND } from '../../../hardware/amd/command-ids.js';
import type { Range } from '../../../hardware/amd/firmware-memory.js';
import type { AmdPlatform } from '../../../hardware/amd/platform.js';
import { RMP_RESULT } from '../../../hardware/amd/rmp.js';
import { SNP_INIT_EX, SNP_PAGE, SNP_SHUTDOWN_EX } from '../../../hardware/amd/snp/command-buffers.js';
import { STATUS, type Status } from '../../../hardware/amd/status.js';
import type { Dram, Frame } from '../../../hardware/dram.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../hardware/units.js';
import { type Failure, failed, type Result } from '../../failure.js';
import { notInitialised } from './firmware-failure.js';
import type { Psp } from './psp.js';

/** SNP_INIT_EX: INIT_RMP, an empty reverse map table. */
const INIT_RMP = 1 << 0;
/** SNP_SHUTDOWN_EX: the IOMMU stops to enforce the table, and the CPUs stop to consult it. */
const IOMMU_AND_X86_SNP_SHUTDOWN = (1 << 0) | (1 << 1);

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

  private rmpupdate({ pfn }: Frame, firmware: boolean): boolean {
    const update = { assigned: firmware, immutable: firmware, size: '4k', asid: asid(0), gpa: gpa(0) } as const;
    return this.amd.rmp.rmpupdate(pfn, update) === RMP_RESULT.OK;
  }

  private shutdownEx(): Status {
    const buffer = new Uint8Array(SNP_SHUTDOWN_EX.size);
    SNP_SHUTDOWN_EX.length.set(buffer, SNP_SHUTDOWN_EX.size);
    SNP_SHUTDOWN_EX.flags.set(buffer, IOMMU_AND_X86_SNP_SHUTDOWN);
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
