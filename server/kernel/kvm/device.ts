import { Failure, failed, type Result } from '../failure.js';
import { ANON_INODE_STAT, File, type FileOperations, type FileStat, noopLlseek, OPEN } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_CREATE_DEVICE_TEST, KVM_DEV_TYPE } from '../uapi/constants.js';
import { IOCTL } from '../uapi/ioctls.js';
import { kvm_create_device, kvm_device_attr } from '../uapi/kvm-structs.js';
import type { StructValue } from '../uapi/struct.js';
import { copyStruct, copyStructOut } from './copy-struct.js';
import { gate } from './gate.js';
import { createVfioDevice } from './vfio.js';
import type { Vm } from './vm.js';

/** One attribute of a device; its value lies in user memory at `addr`, which `arg.user` reaches. */
export type DeviceAttribute = StructValue<typeof kvm_device_attr> & { readonly user: IoctlArg['user'] };

type Accessor = (current: Task, attribute: DeviceAttribute) => Failure | null;

/** `struct kvm_device` with its `kvm_device_ops`. An accessor that a device lacks is EPERM. */
export interface KvmDevice {
  /** KVM_DEV_TYPE. */
  readonly type: number;
  /** As the link of its descriptor shows it: `kvm-vfio`. */
  readonly name: string;
  readonly setAttr?: Accessor;
  readonly getAttr?: Accessor;
  readonly hasAttr?: Accessor;
  /** Its file is closed, or the VM is destroyed: the device is gone. */
  free(): void;
}

/** `kvm_device_ops_table`: on x86 the glue to VFIO alone. */
const CREATE: ReadonlyMap<number, (vm: Vm) => Result<KvmDevice>> = new Map([[KVM_DEV_TYPE.VFIO, createVfioDevice]]);

/** The file of a device (`kvm_device_fops`). */
class DeviceFile implements FileOperations {
  readonly name: string;
  readonly llseek = noopLlseek;

  constructor(
    private readonly vm: Vm,
    private readonly device: KvmDevice,
  ) {
    this.name = `anon_inode:${device.name}`;
    vm.get();
  }

  stat(): FileStat {
    return ANON_INODE_STAT;
  }

  /** `kvm_device_ioctl`. */
  ioctl(current: Task, _file: File, request: number, arg: IoctlArg): Result<number> {
    const admission = gate(current, this.vm, { scope: 'device', request, arg });
    if (admission.kind !== 'run') return admission.kind === 'refuse' ? admission.failure : admission.ret;
    switch (request) {
      case IOCTL.KVM_SET_DEVICE_ATTR:
        return this.access(current, this.device.setAttr, arg);
      case IOCTL.KVM_GET_DEVICE_ATTR:
        return this.access(current, this.device.getAttr, arg);
      case IOCTL.KVM_HAS_DEVICE_ATTR:
        return this.access(current, this.device.hasAttr, arg);
      default:
        return new Failure('ENOTTY', 'UNKNOWN_IOCTL', 'kvm_device_ioctl', { request: `0x${request.toString(16)}` });
    }
  }

  /** `kvm_device_release`, for a device that goes with its file. */
  *release(current: Task): MightSleep<void> {
    yield* this.vm.lock.lock(current);
    this.vm.devices.delete(this.device);
    this.device.free();
    this.vm.lock.unlock(current);
    yield* this.vm.put(current);
  }

  /** `kvm_device_ioctl_attr`. */
  private access(current: Task, accessor: Accessor | undefined, arg: IoctlArg): Result<number> {
    if (accessor === undefined)
      return new Failure('EPERM', 'DEVICE_WITHOUT_ACCESSOR', 'kvm_device_ioctl_attr', { device: this.device.name });
    const attribute = copyStruct(arg, kvm_device_attr);
    return failed(attribute) ? attribute : (accessor(current, { ...attribute, user: arg.user }) ?? 0);
  }
}

/** KVM_CREATE_DEVICE (`kvm_ioctl_create_device`): the descriptor goes into the structure. ENODEV for an unknown type. */
export function* createDevice(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const request = copyStruct(arg, kvm_create_device);
  if (failed(request)) return request;
  const create = CREATE.get(request.type);
  if (create === undefined)
    return new Failure('ENODEV', 'DEVICE_TYPE_UNKNOWN', 'kvm_ioctl_create_device', {
      field: 'type',
      given: String(request.type),
      allowed: [...CREATE.keys()].join(', '),
    });
  if ((request.flags & KVM_CREATE_DEVICE_TEST) !== 0) return copyStructOut(arg, kvm_create_device, request) ?? 0;
  yield* vm.lock.lock(current);
  const device = create(vm);
  if (!failed(device)) vm.devices.add(device);
  vm.lock.unlock(current);
  if (failed(device)) return device;
  const file = new File(new DeviceFile(vm, device), OPEN.RDWR);
  const fd = current.process.files.install(file, true);
  if (failed(fd)) {
    yield* file.put(current);
    return fd;
  }
  return copyStructOut(arg, kvm_create_device, { ...request, fd }) ?? 0;
}
