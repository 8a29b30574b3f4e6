import type { Frame, MemoryKey } from '../dram.js';

/**
 * The checksums of SEV-ES save areas that the hardware keeps in the trusted memory region which INIT was given: VMRUN
 * refuses a save area that is not as the last VMEXIT, or the firmware, left it (not verified beyond the architecture
 * manual's outline). So a host that writes or replays a save area's ciphertext stops the vCPU and changes nothing else.
 */
export class SaveAreaIntegrity {
  /** Contents instead of checksums: as exact, and cheaper to compare. */
  private readonly contents = new WeakMap<Frame, Uint8Array>();

  /** The firmware or a VMEXIT has written a save area. */
  record(frame: Frame, key: MemoryKey): void {
    const page = frame.view(key);
    const known = this.contents.get(frame);
    if (known === undefined) this.contents.set(frame, Uint8Array.from(page));
    else known.set(page);
  }

  /** Whether VMRUN accepts the save area. */
  isIntact(frame: Frame, key: MemoryKey): boolean {
    const known = this.contents.get(frame);
    return known !== undefined && Buffer.compare(known, frame.view(key)) === 0;
  }
}
