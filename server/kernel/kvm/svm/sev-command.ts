import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { SevFile } from '../../drivers/ccp/sev-dev.js';
import { pspCopyUserBlob } from '../../drivers/ccp/user-blob.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { UserCopy } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Fields, Struct, ValueOf } from '../../uapi/struct.js';
import type { Vm } from '../vm.js';
import type { SevInfo } from './sev-info.js';
import type { SevModule } from './sev-module.js';

/** One KVM_MEMORY_ENCRYPT_OP, as its handler gets it: under kvm->lock, with `kvm_sev_cmd` copied in. */
export interface SevCall {
  readonly module: SevModule;
  readonly current: Task;
  readonly vm: Vm;
  readonly sev: SevInfo;
  readonly user: UserCopy;
  /** User address of the command's own structure. */
  readonly data: bigint;
  /** `kvm_sev_cmd.sev_fd`: used by the commands that make a guest context. */
  readonly sevFd: number;
}

/** A command: done or refused at once, or in steps where it has to wait for vCPUs. */
export type SevHandler = (call: SevCall) => Failure | null | MightSleep<Failure | null>;

/** ENOTTY of the commands that want a SEV guest. */
export const requireSevGuest = ({ sev, vm }: SevCall, kernelRef: string): Failure | null =>
  sev.active ? null : new Failure('ENOTTY', 'NOT_A_SEV_GUEST', kernelRef, { object: `vm ${vm.id}` });

/** Copies the command's own structure in. */
export const copyParams = <F extends Fields>({ user, data }: SevCall, layout: Struct<F>): Result<ValueOf<F>> => {
  const bytes = user.copyIn(data, layout.size);
  return failed(bytes) ? bytes : layout.decode(bytes);
};

export const copyParamsOut = <F extends Fields>({ user, data }: SevCall, layout: Struct<F>, value: ValueOf<F>): Failure | null =>
  user.copyOut(data, layout.encode(value));

/** `psp_copy_user_blob`. */
export const copyBlob = ({ user }: SevCall, field: string, address: bigint, length: number): Result<Uint8Array> =>
  pspCopyUserBlob(user, field, address, length);

/** Puts a blob where the firmware can read it, and gives its physical address. */
export const placeBlob = ({ module: { psp } }: SevCall, slot: number, blob: Uint8Array): number => {
  psp.buffers.write(psp.buffers.blob(slot), blob);
  return psp.buffers.blob(slot);
};

/**
 * What userspace gets of a blob that the firmware has written, in a buffer of the `length` that userspace gave. The kernel's
 * buffer is zeroed before: behind what was written there is nothing of the commands before.
 */
export const writtenBlob = ({ module: { psp } }: SevCall, slot: number, written: number, length: number): Uint8Array => {
  const bytes = psp.buffers.read(psp.buffers.blob(slot), Math.min(written, length));
  if (bytes.length === length) return bytes;
  const padded = new Uint8Array(length);
  padded.set(bytes);
  return padded;
};

/**
 * `__sev_issue_cmd`: a firmware command on the authority of a descriptor, which is looked up in the *caller's* table and
 * must be `/dev/sev`. EBADF, or EIO with the firmware's status.
 */
export const issueOnFd = (
  { module, current }: Pick<SevCall, 'module' | 'current'>,
  fd: number,
  name: CommandName,
  buffer: Uint8Array,
  kernelRef: string,
): Failure | null => {
  const file = current.process.files.lookup(fd);
  if (file === undefined) return new Failure('EBADF', 'SEV_FD_NOT_OPEN', '__sev_issue_cmd', { sev_fd: String(fd) });
  if (!(file.ops instanceof SevFile))
    return new Failure('EBADF', 'SEV_FD_NOT_DEV_SEV', '__sev_issue_cmd', { sev_fd: String(fd), file: file.ops.name });
  return module.psp.run(name, buffer, kernelRef);
};

/** `sev_issue_cmd`: on the descriptor that the launch stored. A move does not carry it over. */
export const issue = (call: SevCall, name: CommandName, buffer: Uint8Array, kernelRef: string): Failure | null =>
  issueOnFd(call, call.sev.fd, name, buffer, kernelRef);
