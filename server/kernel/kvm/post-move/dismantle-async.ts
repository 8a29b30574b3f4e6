import { RESCHED } from '../../sched/wait.js';
import { dismantleVm } from '../dismantle.js';
import type { PostMovePolicy } from './policy.js';
import { refuse, requestVmDead } from './refusal.js';

/**
 * As DISMANTLE_ON_MOVE, but after the move and in the background ('asynchronous cleanup', 2023). Rules:
 * - the move itself dismantles nothing: the blackout is that of VM_DEAD;
 * - a kernel worker that holds a reference on the VM dismantles it once the move has dropped its locks;
 * - closing the fds and the exit of the process do not wait for the worker;
 * - every ioctl on the VM, its vCPUs and its devices fails with EIO.
 */
export const dismantleAsync: PostMovePolicy = {
  name: 'DISMANTLE_ASYNC',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: (source) => {
    const vm = source.get();
    vm.kernel.work(`dismantle of vm ${vm.id}`, function* dismantle(current) {
      // A queued work gets its turn when the call that queued it is over.
      yield RESCHED;
      yield* dismantleVm(current, vm);
      yield* vm.put(current);
    });
  },
  admit: refuse,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
