import type { Result } from '../failure.js';
import { ANON_INODE_STAT, File, type FileOperations, type FileStat, noopLlseek, OPEN } from '../fs/file.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_STATS_BASE, KVM_STATS_TYPE, KVM_STATS_UNIT } from '../uapi/constants.js';
import { kvm_stats_desc, kvm_stats_header } from '../uapi/kvm-structs.js';
import type { Vcpu } from './vcpu.js';
import type { Vm } from './vm.js';

/** `KVM_STATS_NAME_SIZE`. */
const NAME_SIZE = 48;
const VALUE_SIZE = 8;
const DESCRIPTOR_SIZE = kvm_stats_desc.size + NAME_SIZE;

/** One statistic: its name in the kernel and what it counts now. */
interface Statistic {
  readonly name: string;
  readonly type: (typeof KVM_STATS_TYPE)['CUMULATIVE' | 'INSTANT'];
  readonly value: number;
}

/** `kvm_vm_stats_desc`, as far as the simulation counts. */
const vmStatistics = (vm: Vm): Statistic[] => [
  { name: 'pages_4k', type: KVM_STATS_TYPE.INSTANT, value: vm.arch.mmu.mappings().length },
];

/** `kvm_vcpu_stats_desc`, as far as the simulation counts. */
const vcpuStatistics = (vcpu: Vcpu): Statistic[] =>
  Object.entries(vcpu.arch.stat).map(([name, value]) => ({ name, type: KVM_STATS_TYPE.CUMULATIVE, value }));

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text).subarray(0, NAME_SIZE - 1);

/** The whole file: header, id, descriptors, values. */
const image = (id: string, statistics: readonly Statistic[]): Uint8Array => {
  const descriptors = kvm_stats_header.size + NAME_SIZE;
  const values = descriptors + statistics.length * DESCRIPTOR_SIZE;
  const data = new Uint8Array(values + statistics.length * VALUE_SIZE);
  kvm_stats_header.write(data, {
    name_size: NAME_SIZE,
    num_desc: statistics.length,
    id_offset: kvm_stats_header.size,
    desc_offset: descriptors,
    data_offset: values,
  });
  data.set(ascii(id), kvm_stats_header.size);
  const view = new DataView(data.buffer);
  statistics.forEach(({ name, type, value }, index) => {
    const at = descriptors + index * DESCRIPTOR_SIZE;
    const flags = type | KVM_STATS_UNIT.NONE | KVM_STATS_BASE.POW10;
    kvm_stats_desc.write(data, { flags, exponent: 0, size: 1, offset: index * VALUE_SIZE, bucket_size: 0 }, at);
    data.set(ascii(name), at + kvm_stats_desc.size);
    view.setBigUint64(values + index * VALUE_SIZE, BigInt(value), true);
  });
  return data;
};

/** The file of KVM_GET_STATS_FD. It holds the VM and has no gate: values can be read as long as it is open. */
class StatsFile implements FileOperations {
  readonly llseek = noopLlseek;

  constructor(
    readonly name: string,
    private readonly vm: Vm,
    private readonly id: string,
    private readonly statistics: () => Statistic[],
  ) {
    vm.get();
  }

  stat(): FileStat {
    return ANON_INODE_STAT;
  }

  *read(_current: Task, file: File, length: number): MightSleep<Result<Uint8Array>> {
    const data = this.at(file.position, length);
    file.position += data.length;
    return data;
  }

  /** `kvm_stats_read`. */
  pread(_current: Task, length: number, offset: number): Result<Uint8Array> {
    return this.at(offset, length);
  }

  *release(current: Task): MightSleep<void> {
    yield* this.vm.put(current);
  }

  private at(offset: number, length: number): Uint8Array {
    return image(this.id, this.statistics()).slice(offset, offset + length);
  }
}

function* open(current: Task, ops: StatsFile): MightSleep<Result<number>> {
  const file = new File(ops, OPEN.RDONLY);
  const fd = current.process.files.install(file, true);
  if (typeof fd !== 'number') yield* file.put(current);
  return fd;
}

/** KVM_GET_STATS_FD on a VM (`kvm_vm_ioctl_get_stats_fd`). */
export const vmStatsFd = (current: Task, vm: Vm): MightSleep<Result<number>> =>
  open(current, new StatsFile('anon_inode:kvm-vm-stats', vm, `kvm-${vm.ownerPid}`, () => vmStatistics(vm)));

/** KVM_GET_STATS_FD on a vCPU (`kvm_vcpu_ioctl_get_stats_fd`). */
export const vcpuStatsFd = (current: Task, vcpu: Vcpu): MightSleep<Result<number>> => {
  const { vm, id } = vcpu;
  const name = `anon_inode:kvm-vcpu-stats:${id}`;
  return open(current, new StatsFile(name, vm, `kvm-${vm.ownerPid}/vcpu-${id}`, () => vcpuStatistics(vcpu)));
};
