import { IOCTL } from '../../uapi/ioctls.js';
import { type PostMovePolicy, RUN } from './policy.js';
import { refuse, requestVmDead } from './refusal.js';

/**
 * VM_DEAD, and KVM_DISMANTLE_VM as the one ioctl that a dead VM accepts (proposed in February 2023, never written). Rules:
 * - KVM_DISMANTLE_VM passes: a best-effort teardown of PIO and MMIO buses, memslots and all page tables; it may be repeated;
 * - every other ioctl on the VM, its vCPUs and its devices fails with EIO;
 * - irqfds, vCPUs, run pages, irqchip and routing stay until the fds are closed.
 */
export const dismantleIoctl: PostMovePolicy = {
  name: 'DISMANTLE_IOCTL',
  offersDismantle: true,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: () => {},
  admit: (vm, call) => (call.scope === 'vm' && call.request === IOCTL.KVM_DISMANTLE_VM ? RUN : refuse(vm, call)),
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
