import { PAGE_SIZE } from '../../units.js';
import { blob, struct, u32 } from '../byte-layout.js';
import type { SnpLaunch } from './snp-guest.js';

/** The page through which the firmware gives a guest its message keys (sev-firmware.md 3.12). */
export const SECRETS_PAGE = struct(PAGE_SIZE, {
  version: u32(0x000),
  flags: u32(0x004),
  fms: u32(0x008),
  gosvw: blob(0x010, 16),
  vmpck0: blob(0x020, 32),
  vmpck1: blob(0x040, 32),
  vmpck2: blob(0x060, 32),
  vmpck3: blob(0x080, 32),
});

const VERSION = 3;

/** @param fms family, model and stepping as CPUID function 1 has them */
export function createSecretsPage({ gosvw, vmpcks }: SnpLaunch, fms: number): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  SECRETS_PAGE.version.set(page, VERSION);
  SECRETS_PAGE.fms.set(page, fms);
  SECRETS_PAGE.gosvw.set(page, gosvw);
  [SECRETS_PAGE.vmpck0, SECRETS_PAGE.vmpck1, SECRETS_PAGE.vmpck2, SECRETS_PAGE.vmpck3].forEach((field, index) => {
    field.set(page, vmpcks[index] ?? new Uint8Array(0));
  });
  return page;
}
