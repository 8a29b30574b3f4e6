import { INIT, INIT_OPTION_ES } from '../../../hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../hardware/amd/command-ids.js';
import type { AmdPlatform } from '../../../hardware/amd/platform.js';
import type { PlatformStateKind } from '../../../hardware/amd/platform-state.js';
import { STATUS, type Status } from '../../../hardware/amd/status.js';
import type { Dram } from '../../../hardware/dram.js';
import { hpa } from '../../../hardware/units.js';
import { type Failure, failed, type Result } from '../../failure.js';
import { FirmwareBuffers } from './firmware-buffers.js';
import { firmwareFailure, notInitialised } from './firmware-failure.js';
import { firmwareWrites } from './firmware-writes.js';
import { SnpPlatformDriver } from './snp-platform.js';

/**
 * The trusted memory region for SEV-ES: 1 MiB, aligned to its size, below the memory that the page allocator hands out.
 * Only the CPU and the secure processor use it.
 */
const TMR = { address: 0x10_0000, length: 0x10_0000 } as const;

export interface PspOptions {
  /** Guests may be SEV-ES: INIT says so to the firmware. */
  readonly es: boolean;
  /** Guests may be SEV-SNP. */
  readonly snp: boolean;
  /** Number of CPUs. */
  readonly cpus: number;
}

/**
 * `psp_master`: the driver of the secure processor (drivers/crypto/ccp/sev-dev.c). It owns the mailbox. A command never
 * waits here, so the mutex that serialises the mailbox's users has nobody to hold off.
 */
export class Psp {
  readonly buffers: FirmwareBuffers;
  /** SEV-SNP has a platform state of its own; null on a host without it. */
  readonly snp: SnpPlatformDriver | null;

  constructor(
    private readonly amd: AmdPlatform,
    dram: Dram,
    private readonly options: PspOptions,
  ) {
    this.buffers = FirmwareBuffers.allocate(dram);
    this.snp = options.snp ? new SnpPlatformDriver(this, amd, dram, options.cpus) : null;
  }

  get platformState(): PlatformStateKind {
    return this.amd.processor.state;
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
    return status === STATUS.SUCCESS ? null : firmwareFailure(name, status, kernelRef);
  }

  /**
   * `__sev_platform_init_locked`: INIT at first use, then the flush that must come before the first ACTIVATE. SEV-SNP comes
   * first, for it cannot be initialised while there are legacy guests; should that fail, the others do without it.
   */
  platformInit(): Failure | null {
    if (this.platformState !== 'uninit') return null;
    this.snp?.init();
    let status = this.init();
    // The firmware has found its persistent state damaged and reset it: the second attempt succeeds.
    if (status === STATUS.SECURE_DATA_INVALID) status = this.init();
    if (status !== STATUS.SUCCESS) return firmwareFailure('INIT', status, '__sev_platform_init_locked');
    this.amd.wbinvdOnAllCpus();
    return this.run('DF_FLUSH', null, 'sev_guest_df_flush');
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
   */
  withPlatform<T>(body: () => Result<T>): Result<T> {
    const before = this.platformState;
    const failure = this.platformInit();
    if (failed(failure)) return notInitialised(failure);
    const result = body();
    if (before === 'uninit') this.command('SHUTDOWN');
    return result;
  }

  private init(): Status {
    const data = new Uint8Array(INIT.size);
    if (this.options.es) {
      INIT.options.set(data, INIT_OPTION_ES);
      INIT.tmrPaddr.set(data, TMR.address);
      INIT.tmrLength.set(data, TMR.length);
    }
    return this.command('INIT', data);
  }
}
