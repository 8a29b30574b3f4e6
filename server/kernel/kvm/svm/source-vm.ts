import { Failure, failed, type Result } from '../../failure.js';
import type { File } from '../../fs/file.js';
import type { Task } from '../../sched/task.js';
import type { Vm } from '../vm.js';
import { VmFile } from '../vm-file.js';

/** A VM and the file through which it was named. */
export interface NamedVm {
  readonly file: File;
  readonly vm: Vm;
}

/** The source of a move or a copy: any VM's descriptor in the caller's table, whoever made the VM. EBADF. */
export const namedSource = (current: Task, fd: number, kernelRef: string): Result<NamedVm> => {
  const file = current.process.files.get(fd, kernelRef);
  if (failed(file)) return file;
  if (!(file.ops instanceof VmFile))
    return new Failure('EBADF', 'FD_NOT_A_VM', kernelRef, { field: 'args[0]', fd: String(fd), file: file.ops.name });
  return { file, vm: file.ops.vm };
};
