import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { NV_LENGTH } from '../../../hardware/amd/persistent-store.js';
import { STATUS } from '../../../hardware/amd/status.js';
import type { Dram } from '../../../hardware/dram.js';
import { type Hpa, PAGE_SIZE } from '../../../hardware/units.js';
import type { Errno } from '../../errno.js';
import { Failure } from '../../failure.js';
import { ContiguousPages } from './contiguous-pages.js';
import type { SnpPlatformDriver } from './snp-platform.js';

/** The file of `init_ex_path`, with what the driver does to it. The simulated host has no file system: it comes from outside. */
export interface InitExFile {
  readonly path: string;
  /** Its first `length` bytes: fewer, or none, where it is shorter or cannot be read. An errno if it cannot be opened. */
  read(length: number): Uint8Array | Errno;
  /** Overwrites its beginning, and syncs. It is made, for its owner alone, if it is not there; what is behind stays. */
  write(bytes: Uint8Array): Errno | null;
}

/** `sev_write_init_ex_file_if_required`: the commands that change what the firmware stores. */
const CHANGES_STORAGE: ReadonlySet<CommandName> = new Set<CommandName>([
  'PLATFORM_RESET',
  'INIT_EX',
  'PDH_GEN',
  'PEK_CERT_IMPORT',
  'PEK_GEN',
]);

/**
 * `sev_init_ex_buffer`: with the module parameter `init_ex_path` the firmware's non-volatile storage is memory of the driver's,
 * which it reads from a file before the first INIT_EX and writes back after each command that changes it.
 *
 * The kernel forgives the file much: where it is missing or too short INIT_EX gets what else the pages hold, which the firmware
 * finds damaged and resets. What cannot be opened fails the initialisation, but only once: the next attempt takes the buffer
 * as it is, and overwrites the file if it can.
 */
export class InitExBuffer {
  private readonly pages: ContiguousPages;
  /** Until then what the driver asks of it does nothing. */
  private allocated = false;

  constructor(
    dram: Dram,
    private readonly file: InitExFile,
  ) {
    this.pages = new ContiguousPages(dram, NV_LENGTH / PAGE_SIZE);
  }

  get address(): Hpa {
    return this.pages.start;
  }

  /** `__sev_platform_init_handle_init_ex_path`. What pages hold that are new is not said; here zeros. */
  allocate(snp: SnpPlatformDriver | null): Failure | null {
    if (this.allocated) return null;
    this.allocated = true;
    this.pages.write(this.address, new Uint8Array(NV_LENGTH));
    const contents = this.file.read(NV_LENGTH);
    if (typeof contents !== 'string') this.pages.write(this.address, contents);
    else if (contents !== 'ENOENT') return this.failure(contents, 'INIT_EX_FILE_NOT_OPENED', 'sev_read_init_ex_file');
    if (snp?.initialised === true)
      for (const page of this.pages.frames)
        if (!snp.markFirmware(page)) return this.failure('ENOMEM', 'RMPUPDATE_FAILED', '__sev_platform_init_handle_init_ex_path');
    return null;
  }

  /** `sev_write_init_ex_file_if_required`, after a command that the firmware has done: it stays done if the file fails. */
  writeBack(name: CommandName): Failure | null {
    if (!this.allocated || !CHANGES_STORAGE.has(name)) return null;
    const errno = this.file.write(this.pages.read(this.address, NV_LENGTH));
    return errno === null ? null : this.failure(errno, 'INIT_EX_FILE_NOT_WRITTEN', 'sev_write_init_ex_file');
  }

  /** `__sev_firmware_shutdown`'s part: the next initialisation reads the file again. */
  free(snp: SnpPlatformDriver | null): void {
    if (!this.allocated) return;
    this.allocated = false;
    if (snp?.initialised === true) for (const page of this.pages.frames) snp.reclaim(page);
  }

  private failure(errno: Errno, reason: string, kernelRef: string): Failure {
    return new Failure(errno, reason, kernelRef, { file: this.file.path }, STATUS.SUCCESS);
  }
}
