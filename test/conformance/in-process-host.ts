import type { Kernel } from '../../server/kernel/kernel.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import { InProcessCalls } from './backend-in-process.js';
import { Executor } from './executor.js';
import { ForeignPages } from './foreign-pages.js';
import { RECORDED_HOST } from './recorded-host.js';
import { VirtualClock, VirtualTime } from './virtual-time.js';

/** A fresh host with an executor in a process of its own. */
export interface InProcessHost {
  readonly executor: Executor;
  /** Ends the process, and tells what the kernel still holds of it, or has to report: nothing, if all is well. */
  finish(): Promise<string[]>;
}

/** What is left on a host without processes. */
const leftovers = (kernel: Kernel): string[] => [
  ...[...kernel.vms.values()].map((vm) => `VM ${vm.id} with ${vm.references} references`),
  ...(kernel.dram.used > 0 ? [`${kernel.dram.used} frames of memory`] : []),
  ...[...kernel.kmem.chargedByType].map(([type, bytes]) => `${bytes} bytes of ${type}`),
  ...kernel.findings.all.map(({ domain, kind, message }) => `finding (${domain}) ${kind}: ${message}`),
];

/** @param foreign the process's memory is its own, and in step with the kernel's only where calls begin and end */
export const createInProcessHost = async (foreign = false): Promise<InProcessHost> => {
  const clock = new VirtualClock();
  const kernel = createHost(RECORDED_HOST, { clock });
  const atBoot = leftovers(kernel);
  const memory = foreign ? new ForeignPages(kernel.pages, kernel.dram) : null;
  const process = kernel.spawn(null, memory ?? kernel.pages);
  const calls = new InProcessCalls(kernel, new VirtualTime(kernel, clock), process, memory);
  const executor = await Executor.create(calls);
  const finish = async (): Promise<string[]> => {
    await calls.exit();
    return leftovers(kernel).filter((item) => !atBoot.includes(item));
  };
  return { executor, finish };
};
