import { cpuPage } from './cpu.js';
import { kvmApiPage } from './kvm-api.js';

/** The generated pages by file name in `docs/`. */
export const PAGES: Readonly<Record<string, () => string>> = { 'kvm-api.md': kvmApiPage, 'cpu.md': cpuPage };
