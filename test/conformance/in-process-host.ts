import { createHost } from '../../server/kernel/kvm/host.js';
import { InProcessCalls } from './backend-in-process.js';
import { Executor } from './executor.js';
import { RECORDED_HOST } from './recorded-host.js';
import { VirtualClock, VirtualTime } from './virtual-time.js';

/** An executor in a process of its own on a fresh host. */
export const executorOnFreshHost = (): Promise<Executor> => {
  const clock = new VirtualClock();
  const kernel = createHost(RECORDED_HOST, { clock });
  return Executor.create(new InProcessCalls(kernel, new VirtualTime(kernel, clock), kernel.spawn(null)));
};
