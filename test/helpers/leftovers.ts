import { afterEach, expect } from 'vitest';
import type { Kernel } from '../../server/kernel/kernel.js';

/** What a host holds, by name; a host without processes holds what it held when it was started. */
const holdings = (kernel: Kernel): Readonly<Record<string, number>> => ({
  vms: kernel.vms.size,
  frames: kernel.dram.used,
  'frames kept for somebody': kernel.dram.reserved,
  'bytes of the kernel': kernel.kmem.chargedBytes + kernel.kmem.reachableBytes,
  'bytes of processes': [...kernel.processes.values()].reduce((sum, { kmem }) => sum + kmem.chargedBytes, 0),
  'contexts of the secure processor':
    kernel.amd === null ? 0 : kernel.amd.processor.guests().length + kernel.amd.processor.snpGuests().length,
});

interface Tracked {
  readonly kernel: Kernel;
  readonly atStart: Readonly<Record<string, number>>;
}

let leaks = new Map<Kernel, Readonly<Record<string, number>>>();

let tracked: Tracked[] = [];
let held: (() => void)[] = [];

/** Every process of this host is ended after the test, and then nothing may be left. */
export const trackHost = (kernel: Kernel): Kernel => {
  tracked.push({ kernel, atStart: holdings(kernel) });
  return kernel;
};

/** What the test itself holds of a host, as an open file would: let go when the test is over. */
export const releaseAfterTest = (release: () => void): void => {
  held.push(release);
};

/** What a test knows the kernel to leak, because the real one does: by the names of `holdings`. */
export const expectLeak = (kernel: Kernel, leak: Readonly<Record<string, number>>): void => {
  leaks.set(kernel, leak);
};

/** Ends every process; those that a halted or endless guest keeps busy are killed out of it. */
const endProcesses = (kernel: Kernel): void => {
  for (const process of [...kernel.processes.values()]) if (process !== kernel.init) kernel.exit(process);
  kernel.scheduler.run();
  kernel.work('closing the descriptors of init', (current) => kernel.init.files.closeAll(current));
  kernel.scheduler.run();
};

afterEach(() => {
  const hosts = tracked;
  tracked = [];
  for (const release of held) release();
  held = [];
  const expected = leaks;
  leaks = new Map();
  for (const { kernel, atStart } of hosts) {
    endProcesses(kernel);
    const leaked = Object.entries(expected.get(kernel) ?? {}).map(([name, count]) => [name, (atStart[name] ?? 0) + count]);
    const allowed = { ...atStart, ...Object.fromEntries(leaked) };
    expect(holdings(kernel), 'left on a host whose processes have all ended').toEqual(allowed);
  }
});
