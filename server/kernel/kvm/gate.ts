import { Failure } from '../failure.js';
import type { JournalEntry } from '../sanitizer/findings.js';
import type { Task } from '../sched/task.js';
import { ioctlName } from '../uapi/ioctls.js';
import { type Admission, type GatedCall, RUN } from './post-move/policy.js';
import type { Vm } from './vm.js';
import { describeDeath } from './vm-life.js';

const refuse = (failure: Failure): Admission => ({ kind: 'refuse', failure });

/** The details that every refusal because of a VM's state carries. */
export const deathDetails = (vm: Vm): Record<string, string> => {
  const { life } = vm;
  if (life.kind === 'alive') return { object: `vm ${vm.id}`, state: 'alive' };
  const details = { object: `vm ${vm.id}`, state: life.kind, death_cause: describeDeath(life.cause) };
  return life.kind === 'moved' ? { ...details, policy: life.policy.name } : details;
};

/** An ioctl as findings tell of it. It keeps nothing of the call's argument, which would live as long as the journal. */
class GatedCallNote implements JournalEntry {
  constructor(
    readonly vm: number,
    private readonly pid: number,
    private readonly scope: GatedCall['scope'],
    private readonly request: number,
    private readonly vcpuId: number | undefined,
  ) {}

  describe(): string {
    const name = ioctlName(this.request, this.scope) ?? `ioctl 0x${this.request.toString(16)}`;
    const part = this.scope === 'device' ? 'a device of ' : '';
    const object = this.vcpuId === undefined ? `${part}vm ${this.vm}` : `vcpu ${this.vcpuId} of vm ${this.vm}`;
    return `pid ${this.pid}: ${name} on ${object}`;
  }
}

/**
 * The first statement of `kvm_vm_ioctl`, `kvm_vcpu_ioctl` and `kvm_device_ioctl`: the caller's mm must be the VM's, and
 * the VM must not be dead. EIO for either; tested once, without a lock, so a call that has passed goes on whatever
 * happens while it waits.
 */
export const gate = (current: Task, vm: Vm, call: GatedCall): Admission => {
  const note = new GatedCallNote(vm.id, current.process.pid, call.scope, call.request, call.vcpu?.id);
  vm.kernel.sanitizer.callBegins(current, note);
  if (current.process.mm !== vm.mm)
    return refuse(
      new Failure('EIO', 'VM_MM_MISMATCH', `kvm_${call.scope}_ioctl`, {
        object: `vm ${vm.id}`,
        owner_pid: String(vm.ownerPid),
        caller_pid: String(current.process.pid),
      }),
    );
  const { life } = vm;
  if (life.kind === 'alive') return RUN;
  if (life.kind === 'moved') return life.policy.admit(vm, call);
  const reason = life.cause.kind === 'discarded' ? 'VM_DISCARDED' : 'VM_BUGGED';
  return refuse(new Failure('EIO', reason, `kvm_${call.scope}_ioctl`, deathDetails(vm)));
};
