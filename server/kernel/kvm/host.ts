import { createAmdPlatform } from '../../hardware/amd/platform.js';
import { createCostLedger } from '../../hardware/costs.js';
import { Dram } from '../../hardware/dram.js';
import { createEntropy } from '../../hardware/entropy.js';
import { PAGE_SIZE } from '../../hardware/units.js';
import type { Clock } from '../clock.js';
import type { HostConfig } from '../config.js';
import type { InitExFile } from '../drivers/ccp/init-ex.js';
import { sevDevInit } from '../drivers/ccp/sev-dev.js';
import { chrDevInit } from '../drivers/char/mem.js';
import { Kernel } from '../kernel.js';
import { PageAllocator } from '../mm/page.js';
import { Findings } from '../sanitizer/findings.js';
import { Scheduler } from '../sched/scheduler.js';
import { openKvm } from './kvm-main.js';
import { postMovePolicy } from './post-move/index.js';
import { createSvmOps } from './svm/svm.js';
import { createVmxOps } from './vmx/vmx.js';

/** First page frame that is handed out: below 1 MiB lies firmware, and above it the kernel's image. */
const FIRST_FRAME = 0x1000;

/** What a host gets from outside. */
export interface HostEnvironment {
  readonly clock: Clock;
  /** @default one that runs tasks in the order in which they became runnable */
  readonly scheduler?: Scheduler;
  /**
   * `init_ex_path`: the file in which an AMD host keeps its platform's identity.
   * @default the secure processor keeps it, for as long as the host lives
   */
  readonly initExFile?: InitExFile;
}

/** Puts a simulated host together: hardware, kernel, the vendor's module of KVM, devices. Two of them share nothing. */
export const createHost = (config: HostConfig, environment: HostEnvironment): Kernel => {
  const { clock, scheduler = new Scheduler(), initExFile = null } = environment;
  const { cpus, sev, vendor } = config;
  const entropy = createEntropy(config.seed);
  const costs = createCostLedger(config.costFactors);
  const dram = new Dram(FIRST_FRAME, Math.floor(config.memoryBytes / PAGE_SIZE));
  const pages = new PageAllocator(dram);
  const findings = new Findings();
  const asids = { count: sev.asids, minSev: sev.minSevAsid };
  const amd = vendor === 'amd' ? createAmdPlatform({ dram, entropy, charge: costs.charge, cpus, asids }) : null;

  const parts = { config, dram, pages, scheduler, costs, entropy, clock, findings, amd, initExFile };
  const kernel = new Kernel(parts, amd === null ? createVmxOps : createSvmOps, postMovePolicy(config.postMovePolicy));
  chrDevInit(kernel);
  kernel.devices.set('/dev/kvm', (flags) => openKvm(kernel, flags));
  sevDevInit(kernel);
  return kernel;
};
