import { Failure, type Result } from '../failure.js';
import { File, type FileOperations, type FileStat, noopLlseek } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Kernel } from '../kernel.js';
import type { Task } from '../sched/task.js';
import type { MaySleep } from '../sched/wait.js';
import { KVM_API_VERSION, KVM_VCPU_MMAP_SIZE } from '../uapi/constants.js';
import { IOCTL } from '../uapi/ioctls.js';
import { checkExtension } from './capabilities.js';
import { createVm } from './create-vm.js';
import { kvmArchDevIoctl } from './x86/dev-ioctl.js';

/** A character device that everybody may read and write. */
const DEVICE_MODE = 0o020666;

const mustBeZero = (arg: IoctlArg, result: number): Result<number> =>
  arg.value === 0n
    ? result
    : new Failure('EINVAL', 'ARGUMENT_NOT_ZERO', 'kvm_dev_ioctl', { field: 'arg', given: String(arg.value), allowed: '0' });

/** `/dev/kvm` (`kvm_chardev_ops`). It looks neither at the mode in which it was opened nor at who calls. */
class KvmFile implements FileOperations {
  readonly name = '/dev/kvm';
  readonly llseek = noopLlseek;
  private readonly inode: number;

  constructor(private readonly kernel: Kernel) {
    this.inode = kernel.allocateInode();
  }

  stat(): FileStat {
    return { size: 0, blksize: 4096, blocks: 0, inode: this.inode, mode: DEVICE_MODE };
  }

  /** `kvm_dev_ioctl`. What it does not know is x86's (`kvm_arch_dev_ioctl`), and EINVAL if it is not. */
  ioctl(current: Task, _file: File, request: number, arg: IoctlArg): MaySleep<Result<number>> {
    switch (request) {
      case IOCTL.KVM_CHECK_EXTENSION:
        return checkExtension(this.kernel, null, arg.value);
      case IOCTL.KVM_GET_API_VERSION:
        return mustBeZero(arg, KVM_API_VERSION);
      case IOCTL.KVM_CREATE_VM:
        return createVm(current, this.kernel, arg.value);
      case IOCTL.KVM_GET_VCPU_MMAP_SIZE:
        return mustBeZero(arg, KVM_VCPU_MMAP_SIZE);
      default:
        return kvmArchDevIoctl(this.kernel, request, arg);
    }
  }
}

/** Opens `/dev/kvm`; registered in `Kernel.devices`. @param flags access mode and O_NONBLOCK */
export const openKvm = (kernel: Kernel, flags: number): File => new File(new KvmFile(kernel), flags);
