import type { Dram, Frame } from '../../../hardware/dram.js';
import { type Hpa, hpa, PAGE_SIZE } from '../../../hardware/units.js';
import { ContiguousPages } from './contiguous-pages.js';

/** `SEV_FW_BLOB_MAX_SIZE`: longest blob that goes to or comes from the firmware. */
export const SEV_FW_BLOB_MAX_SIZE = 0x4000;

/** Most blobs that one command has: SEND_START, with a certificate, two chains and a session. */
const BLOB_SLOTS = 4;

/**
 * Memory for the mailbox: one page for the command buffer, and room for the blobs of one command. Commands are serial, so
 * nothing in it outlives one.
 */
export class FirmwareBuffers extends ContiguousPages {
  constructor(dram: Dram) {
    super(dram, 1 + (BLOB_SLOTS * SEV_FW_BLOB_MAX_SIZE) / PAGE_SIZE);
  }

  /** Address of the command buffer. */
  get command(): Hpa {
    return this.start;
  }

  /** The page that a blob slot begins with. */
  blobPage(slot: number): Frame {
    return this.frameAt(1 + (slot * SEV_FW_BLOB_MAX_SIZE) / PAGE_SIZE);
  }

  /** Address of a blob slot. */
  blob(slot: number): Hpa {
    return hpa(this.start + PAGE_SIZE + slot * SEV_FW_BLOB_MAX_SIZE);
  }
}
