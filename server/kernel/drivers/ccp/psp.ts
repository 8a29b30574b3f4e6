import { INIT, INIT_EX, INIT_OPTION_ES } from '../../../hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../hardware/amd/command-ids.js';
import { NV_LENGTH } from '../../../hardware/amd/persistent-store.js';
import type { AmdPlatform } from '../../../hardware/amd/platform.js';
import { STATUS, type Status } from '../../../hardware/amd/status.js';
import type { Dram } from '../../../hardware/dram.js';
import { hpa } from '../../../hardware/units.js';
import { type Failure, failed, type Result } from '../../failure.js';
import { FirmwareBuffers } from './firmware-buffers.js';
import { firmwareFailure, notInitialised } from './firmware-failure.js';
import { firmwareWrites } from './firmware-writes.js';
import { InitExBuffer, type InitExFile } from './init-ex.js';
import { SnpPlatformDriver } from './snp-platform.js';

/**
 * The trusted memory region for SEV-ES, aligned to its size and below the memory that the page allocator hands out: only the
 * CPU and the secure processor use it. While SEV-SNP is initialised it is one large page.
 */
const SEV_TMR = { address: 0x10_0000, length: 0x10_0000 } as const;
const SNP_TMR = { address: 0x20_0000, length: 0x20_0000 } as const;

export interface PspOptions {
  /** Guests may be SEV-ES: INIT says so to the firmware. */
  readonly es: boolean;
  /** Guests may be SEV-SNP. */
  readonly snp: boolean;
  /** Number of CPUs. */
  readonly cpus: number;
  /** Module parameter `init_ex_path`; null: the secure processor keeps its storage itself. */
  readonly initExFile: InitExFile | null;
}

/**
 * `psp_master`: the driver of the secure processor (drivers/crypto/ccp/sev-dev.c). It owns the mailbox. A command never
 * waits here, so the mutex that serialises the mailbox's users has nobody to hold off.
 */
export class Psp {
  readonly buffers: FirmwareBuffers;
  /** SEV-SNP has a platform state of its own; null on a host without it. */
  readonly snp: SnpPlatformDriver | null;
  private readonly initEx: InitExBuffer | null;
  /** `sev->state`: what the driver knows. The firmware may be further, where the driver failed after a command of its. */
  private state: 'uninit' | 'init' = 'uninit';

  constructor(
    private readonly amd: AmdPlatform,
    dram: Dram,
    private readonly options: PspOptions,
  ) {
    this.buffers = new FirmwareBuffers(dram);
    this.snp = options.snp ? new SnpPlatformDriver(this, amd, dram, options.cpus) : null;
    this.snp?.getPlatformData();
    this.initEx = options.initExFile === null ? null : new InitExBuffer(dram, options.initExFile);
  }

  /** Whether the driver has initialised the platform of SEV and SEV-ES. */
  get initialised(): boolean {
    return this.state === 'init';
  }

  /** `sev_do_cmd`: `data`, the command's buffer, takes the outputs, also after a failure. */
  command(name: CommandName, data: Uint8Array | null = null): Status {
    if (data === null) return this.amd.processor.issue(COMMAND[name], hpa(0));
    const address = this.buffers.command;
    this.buffers.write(address, data);
    const lent = this.snp?.initialised === true ? this.snp.lend(firmwareWrites(name, data, address)) : [];
    const status = this.amd.processor.issue(COMMAND[name], address);
    data.set(this.buffers.view(address, data.length));
    for (const page of lent) this.snp?.reclaim(page);
    return status;
  }

  /** `sev_do_cmd` with the errno: EIO where the status is not SUCCESS. */
  run(name: CommandName, data: Uint8Array | null, kernelRef: string): Failure | null {
    const status = this.command(name, data);
    if (status !== STATUS.SUCCESS) return firmwareFailure(name, status, kernelRef);
    return this.initEx === null ? null : this.initEx.writeBack(name);
  }

  /**
   * `_sev_platform_init_locked`: INIT or INIT_EX at first use, then the flush that must come before the first ACTIVATE. SEV-SNP
   * comes first, for it cannot be initialised while there are legacy guests, nor the others where it was meant to be and failed.
   */
  platformInit(): Failure | null {
    if (this.initialised) return null;
    const without = this.snp?.init() ?? this.initEx?.allocate(this.snp) ?? null;
    if (without !== null) return without;
    let failure = this.init();
    // The firmware has found its persistent state damaged and reset it: the second attempt succeeds.
    if (failure?.fwError === STATUS.SECURE_DATA_INVALID) failure = this.init();
    if (failure !== null) return failure;
    this.state = 'init';
    this.amd.wbinvdOnAllCpus();
    return this.run('DF_FLUSH', null, 'sev_guest_df_flush');
  }

  /** `__sev_platform_shutdown_locked`. */
  platformShutdown(): Failure | null {
    if (!this.initialised) return null;
    const failure = this.run('SHUTDOWN', null, '__sev_platform_shutdown_locked');
    if (failure === null) this.state = 'uninit';
    return failure;
  }

  /** `sev_flush_asids`' hardware part: WBINVD on all CPUs, then DF_FLUSH. All dirty ASIDs are usable afterwards. */
  dfFlush(): Failure | null {
    this.amd.wbinvdOnAllCpus();
    const name = this.snp?.initialised === true ? 'SNP_DF_FLUSH' : 'DF_FLUSH';
    return this.run(name, null, 'sev_flush_asids');
  }

  /**
   * Runs `body` with the platform initialised, and shuts it down again if it was not before (`sev_move_to_init_state`, for key
   * commands of `/dev/sev`). An initialisation that fails is told as INVALID_PLATFORM_STATE, whatever the firmware said.
   * SEV-SNP stays as it is: that Linux 6.16 shuts it down as well, with its guests, is taken for an oversight.
   */
  withPlatform<T>(body: () => Result<T>): Result<T> {
    const before = this.initialised;
    const failure = this.platformInit();
    if (failed(failure)) return notInitialised(failure);
    const result = body();
    if (!before) {
      this.platformShutdown();
      this.initEx?.free(this.snp);
    }
    return result;
  }

  /** `__sev_do_init_locked`. */
  private init(): Failure | null {
    const { initEx, options } = this;
    const layout = initEx === null ? INIT : INIT_EX;
    const data = new Uint8Array(layout.size);
    if (options.es) {
      const tmr = this.snp?.initialised === true ? SNP_TMR : SEV_TMR;
      layout.options.set(data, INIT_OPTION_ES);
      layout.tmrPaddr.set(data, tmr.address);
      layout.tmrLength.set(data, tmr.length);
    }
    if (initEx === null) return this.run('INIT', data, '__sev_init_locked');
    INIT_EX.length.set(data, INIT_EX.size);
    INIT_EX.nvPaddr.set(data, initEx.address);
    INIT_EX.nvLength.set(data, NV_LENGTH);
    return this.run('INIT_EX', data, '__sev_init_ex_locked');
  }
}
