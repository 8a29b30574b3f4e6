import type { Result } from '../failure.js';
import { ANON_INODE_STAT, type File, type FileOperations, type FileStat, noopLlseek } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Task } from '../sched/task.js';
import { type MaySleep, type MightSleep, stepsOf } from '../sched/wait.js';
import { gate } from './gate.js';
import type { Vm } from './vm.js';
import { vmIoctl } from './vm-ioctl.js';
import type { VmPause } from './vm-pause.js';

/** The file of a VM (`kvm_vm_fops`). Closing it is not the VM's end: that comes with the last reference. */
export class VmFile implements FileOperations {
  readonly name = 'anon_inode:kvm-vm';
  readonly llseek = noopLlseek;

  constructor(readonly vm: Vm) {}

  stat(): FileStat {
    return ANON_INODE_STAT;
  }

  /** `kvm_vm_ioctl`: the gate, without a lock, and then the call; all of it later where the VM is being handed over. */
  ioctl(current: Task, _file: File, request: number, arg: IoctlArg): MaySleep<Result<number>> {
    const { pause } = this.vm;
    return pause?.delays(request) ? this.ioctlAfter(pause, current, request, arg) : this.ioctlNow(current, request, arg);
  }

  private *ioctlAfter(pause: VmPause, current: Task, request: number, arg: IoctlArg): MightSleep<Result<number>> {
    const interrupted = yield* pause.over(current);
    return interrupted ?? (yield* stepsOf(this.ioctlNow(current, request, arg)));
  }

  private ioctlNow(current: Task, request: number, arg: IoctlArg): MaySleep<Result<number>> {
    const admission = gate(current, this.vm, { scope: 'vm', request, arg });
    if (admission.kind !== 'run') return admission.kind === 'refuse' ? admission.failure : admission.ret;
    return vmIoctl(current, this.vm, request, arg);
  }

  /** `kvm_vm_release`: irqfds go now, also where somebody else keeps the VM alive. */
  *release(current: Task): MightSleep<void> {
    this.vm.fileOpen = false;
    yield* this.vm.irqfds.release();
    yield* this.vm.put(current);
  }
}
