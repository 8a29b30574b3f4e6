import type { IoeventfdDescription, IrqfdDescription, ReceivedSlot, ReceivedVm } from '../gen/messages.js';
import type { Process } from './process.js';
import { SevPlatform } from './sev-platform.js';
import { Vcpu } from './vcpu.js';
import { Vm } from './vm.js';

/** A guest that has come from another host, as its VMM has it in the process that received it. */
export interface ReceivedGuest {
  readonly vm: Vm;
  /** In the order of the source's. */
  readonly vcpus: readonly Vcpu[];
  /** Of an encrypted guest. */
  readonly sev: SevPlatform | null;
  /** Memory slots, and where their memory lies in the process. */
  readonly slots: readonly ReceivedSlot[];
  /** The source's device wiring. Eventfds do not travel: the VMM makes it again, with `count` as the initial value. */
  readonly ioeventfds: readonly IoeventfdDescription[];
  readonly irqfds: readonly IrqfdDescription[];
}

/** What `process` has received, as objects. */
export const receivedGuest = (
  process: Process,
  { vm_fd, vcpu_fds, other_fds, slots, ioeventfds, irqfds }: ReceivedVm,
): ReceivedGuest => {
  const [sev] = other_fds;
  return {
    vm: process.adopt(Vm, vm_fd),
    vcpus: vcpu_fds.map((fd) => process.adopt(Vcpu, fd)),
    sev: sev === undefined ? null : process.adopt(SevPlatform, sev),
    slots,
    ioeventfds,
    irqfds,
  };
};
