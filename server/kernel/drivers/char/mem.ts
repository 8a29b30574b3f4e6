import { File, type FileOperations, type FileStat } from '../../fs/file.js';
import type { Kernel } from '../../kernel.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';

/** S_IFCHR, readable and writable by all. */
const NULL_MODE = 0o020666;

/** `/dev/null` (drivers/char/mem.c): a file that is none of KVM's, to try its descriptor where another kind is wanted. */
class NullDevice implements FileOperations {
  readonly name = '/dev/null';

  constructor(private readonly inode: number) {}

  *read(): MightSleep<Uint8Array> {
    return this.pread();
  }

  *write(current: Task, _file: File, bytes: Uint8Array): MightSleep<number> {
    return this.pwrite(current, bytes);
  }

  pread(): Uint8Array {
    return new Uint8Array(0);
  }

  pwrite(_current: Task, bytes: Uint8Array): number {
    return bytes.length;
  }

  llseek(): number {
    return 0;
  }

  stat(): FileStat {
    return { size: 0, blksize: 4096, blocks: 0, inode: this.inode, mode: NULL_MODE };
  }
}

/** `chr_dev_init`, as far as there are such devices here. */
export const chrDevInit = (kernel: Kernel): void => {
  const inode = kernel.allocateInode();
  kernel.devices.set('/dev/null', (flags) => new File(new NullDevice(inode), flags));
};
