import { Failure, failed, type Result } from '../failure.js';
import type { Task } from '../sched/task.js';
import { KVM_DEV_TYPE, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ATTR } from '../uapi/constants.js';
import type { DeviceAttribute, KvmDevice } from './device.js';
import { KMEM_SIZE, kvmallocSize } from './kmem-sizes.js';
import type { Vm } from './vm.js';

const NAME = 'kvm-vfio';

const unknown = ({ group, attr }: DeviceAttribute): Failure =>
  new Failure('ENXIO', 'DEVICE_ATTRIBUTE_UNKNOWN', 'kvm_vfio_has_attr', { group: String(group), attr: String(attr) });

const hasAttr = (_current: Task, attribute: DeviceAttribute): Failure | null => {
  const { ADD, DEL } = KVM_DEV_VFIO_FILE_ATTR;
  const known = attribute.group === KVM_DEV_VFIO_FILE && (attribute.attr === BigInt(ADD) || attribute.attr === BigInt(DEL));
  return known ? null : unknown(attribute);
};

/** `kvm_vfio_set_file`: no file of a simulated host is VFIO's, so none can be attached and none is there to be detached. */
const setAttr = (current: Task, attribute: DeviceAttribute): Failure | null => {
  const refused = hasAttr(current, attribute);
  if (refused !== null) return refused;
  const word = attribute.user.copyIn(attribute.addr, 4);
  if (failed(word)) return word;
  const fd = new DataView(word.buffer, word.byteOffset).getInt32(0, true);
  const file = current.process.files.get(fd, 'kvm_vfio_set_file');
  if (failed(file)) return file;
  return attribute.attr === BigInt(KVM_DEV_VFIO_FILE_ATTR.ADD)
    ? new Failure('EINVAL', 'FILE_NOT_VFIO', 'kvm_vfio_file_add', { fd: String(fd), is: file.ops.name })
    : new Failure('ENOENT', 'FILE_NOT_ATTACHED', 'kvm_vfio_file_del', { fd: String(fd) });
};

/** `kvm_vfio_create`: one for each VM (EBUSY). */
export const createVfioDevice = (vm: Vm): Result<KvmDevice> => {
  for (const { name } of vm.devices)
    if (name === NAME) return new Failure('EBUSY', 'VFIO_DEVICE_EXISTS', 'kvm_vfio_create', { object: `vm ${vm.id}` });
  const charges = [
    vm.kmem.charge('kvm_device', kvmallocSize(KMEM_SIZE.kvm_device)),
    vm.kmem.charge('kvm_vfio', kvmallocSize(KMEM_SIZE.kvm_vfio)),
  ];
  return {
    name: NAME,
    type: KVM_DEV_TYPE.VFIO,
    setAttr,
    hasAttr,
    free: () => {
      for (const charge of charges) charge.release();
    },
  };
};
