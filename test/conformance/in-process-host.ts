import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../server/kernel/config.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import { InProcessCalls } from './backend-in-process.js';
import { Executor } from './executor.js';
import { VirtualClock, VirtualTime } from './virtual-time.js';

/** A host like the one that was recorded: an AMD processor on which SEV is off. */
const RECORDED_HOST: HostConfig = {
  ...DEFAULT_HOST_CONFIG,
  sev: { ...DEFAULT_HOST_CONFIG.sev, enabled: false, es: false },
};

/** An executor in a process of its own on a fresh host. */
export const executorOnFreshHost = (): Promise<Executor> => {
  const clock = new VirtualClock();
  const kernel = createHost(RECORDED_HOST, { clock });
  return Executor.create(new InProcessCalls(kernel, new VirtualTime(kernel, clock), kernel.spawn(null)));
};
