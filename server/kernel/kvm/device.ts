import type { Failure, Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';

/** One attribute of a device, as `struct kvm_device_attr` names it; the value lies in user memory at `addr`. */
export interface DeviceAttribute {
  readonly flags: number;
  readonly group: number;
  readonly attr: bigint;
  readonly addr: bigint;
  readonly arg: IoctlArg;
}

/**
 * `struct kvm_device` with its `kvm_device_ops`. An accessor that a device lacks is EPERM. It lives until its file is
 * closed (devices with `release`) or until the VM is destroyed.
 */
export interface KvmDevice {
  /** As the link of its descriptor shows it: `kvm-vfio`. */
  readonly name: string;
  setAttr?(current: Task, attribute: DeviceAttribute): MightSleep<Failure | null>;
  getAttr?(current: Task, attribute: DeviceAttribute): MightSleep<Failure | null>;
  hasAttr?(attribute: DeviceAttribute): Failure | null;
  ioctl?(current: Task, request: number, arg: IoctlArg): MightSleep<Result<number>>;
  /** Its last file is gone; the VM may live on. */
  release?(): void;
  /** The VM is being destroyed. */
  destroy(): void;
}
