import type { Charge } from '../costs.js';
import type { Dram } from '../dram.js';
import type { Entropy } from '../entropy.js';
import { AsidKeys, type AsidRange } from './asid-keys.js';
import { createKeyDistribution, type KeyDistribution } from './key-distribution.js';
import { createMemoryEncryptionEngine } from './memory-encryption.js';
import { Rmp } from './rmp.js';
import { SaveAreaIntegrity } from './save-area-integrity.js';
import { SecureProcessor } from './secure-processor.js';
import { SnpMsrs } from './snp/snp-msrs.js';

export interface AmdPlatformOptions {
  readonly dram: Dram;
  /** Everything random in the secure processor and the memory controllers comes from here. */
  readonly entropy: Entropy;
  readonly charge: Charge;
  /** Number of CPUs. */
  readonly cpus: number;
  readonly asids: AsidRange;
}

/** The parts of an AMD host that plain x86 does not have. */
export interface AmdPlatform {
  readonly processor: SecureProcessor;
  readonly asidKeys: AsidKeys;
  /** What VMRUN compares a save area with, and VMEXIT records. */
  readonly saveAreas: SaveAreaIntegrity;
  /** The reverse map table; not consulted before SNP_INIT. */
  readonly rmp: Rmp;
  /** The registers that must be right on every CPU before SNP_INIT. */
  readonly snpMsrs: SnpMsrs;
  readonly keyDistribution: KeyDistribution;
  /** WBINVD on one CPU. Its own lines reach DRAM; the model of DRAM's dirty lines is cleared by `wbinvdOnAllCpus` only. */
  wbinvd(cpu: number): void;
  /** WBINVD on every CPU, as `wbinvd_on_all_cpus`: no line of any frame is dirty afterwards. */
  wbinvdOnAllCpus(): void;
}

export function createAmdPlatform({ dram, entropy, charge, cpus, asids }: AmdPlatformOptions): AmdPlatform {
  const asidKeys = new AsidKeys(asids, cpus);
  const engine = createMemoryEncryptionEngine(entropy.fork('memory encryption tweaks'));
  const keyDistribution = createKeyDistribution();
  const saveAreas = new SaveAreaIntegrity();
  const rmp = new Rmp();
  const snpMsrs = new SnpMsrs(cpus);
  const processor = new SecureProcessor({
    dram,
    engine,
    asidKeys,
    saveAreas,
    rmp,
    snpMsrs,
    entropy: entropy.fork('secure processor'),
    charge,
    keyDistribution,
  });

  function wbinvd(cpu: number): void {
    charge('wbinvd');
    asidKeys.wbinvd(cpu);
  }

  function wbinvdOnAllCpus(): void {
    for (let cpu = 0; cpu < cpus; cpu++) wbinvd(cpu);
    dram.writebackAll();
  }

  return { processor, asidKeys, saveAreas, rmp, snpMsrs, keyDistribution, wbinvd, wbinvdOnAllCpus };
}
