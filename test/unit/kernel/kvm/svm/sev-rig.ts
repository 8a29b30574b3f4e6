import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import type { Clock } from '../../../../../server/kernel/clock.js';
import type { HostConfig } from '../../../../../server/kernel/config.js';
import { type Failure, failed, type Result } from '../../../../../server/kernel/failure.js';
import type { Vcpu } from '../../../../../server/kernel/kvm/vcpu.js';
import { VM_TYPE, type Vm } from '../../../../../server/kernel/kvm/vm.js';
import type { AddressSpace } from '../../../../../server/kernel/mm/address-space.js';
import { ShmemObject } from '../../../../../server/kernel/mm/memory-object.js';
import { Scheduler } from '../../../../../server/kernel/sched/scheduler.js';
import { open } from '../../../../../server/kernel/syscalls/descriptors.js';
import { KVM_CAP } from '../../../../../server/kernel/uapi/capabilities.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_enable_cap, kvm_enc_region, kvm_userspace_memory_region } from '../../../../../server/kernel/uapi/kvm-structs.js';
import {
  KVM_SEV_CMD,
  type KvmSevCmdName,
  kvm_sev_cmd,
  kvm_sev_guest_status,
  kvm_sev_init,
  kvm_sev_launch_start,
  kvm_sev_launch_update_data,
} from '../../../../../server/kernel/uapi/sev-structs.js';
import { kvm_regs, kvm_sregs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { releaseAfterTest } from '../../../../helpers/leftovers.js';
import { createTestHost, type Started, type TestHost, type TestProcess } from '../test-host.js';

/** What a memory-encryption command answered. */
export interface SevAnswer {
  /** Return value, or the errno's name. */
  readonly result: number | string;
  /** `kvm_sev_cmd.error`. */
  readonly error: number;
  /** The command's own structure, as it was written back. */
  readonly data: Uint8Array;
  readonly failure: Failure | null;
}

/** `error` as the test puts it in, to see whether anybody has written to it. */
export const ERROR_UNTOUCHED = 0xabcd;

export const errnoOf = (result: Result<number>): number | string => (failed(result) ? result.errno : result);

export interface SevGuestOptions {
  readonly vcpus?: number;
  readonly es?: boolean;
  readonly policy?: number;
  /** VMSA features of KVM_SEV_INIT2. */
  readonly features?: bigint;
  /** KVM_CREATE_IRQCHIP before the vCPUs. */
  readonly irqchip?: boolean;
}

/** A VM as its VMM has it. */
export interface Guest {
  readonly vmm: Vmm;
  readonly fd: number;
  readonly vm: Vm;
  readonly vcpus: readonly { readonly fd: number; readonly vcpu: Vcpu }[];
}

const READ_WRITE = { read: true, write: true, execute: false } as const;

/** A VMM process that knows SEV: `/dev/sev`, memory, and the ioctls in the order in which a VMM makes them. */
export class Vmm {
  readonly mm: AddressSpace;
  readonly sevFd: number;
  private readonly scratch: number;

  constructor(readonly process: TestProcess) {
    const { mm } = process.process;
    if (mm === null) throw new Error('a VMM has memory');
    this.mm = mm;
    this.sevFd = process.must(process.call((current) => open(process.kernel, current, '/dev/sev', 2)));
    this.scratch = this.map(null, 16 * PAGE_SIZE);
  }

  map(object: ShmemObject | null, length: number): number {
    const address = this.mm.mmap({ length, protection: READ_WRITE, shared: object !== null, object, offset: 0 });
    if (failed(address)) throw new Error(`mmap: ${address.errno}`);
    return address;
  }

  /** Guest RAM that several processes can map: a memfd without its descriptor. */
  sharedMemory(bytes: number): ShmemObject {
    const object = new ShmemObject(bytes, this.process.kernel.pages);
    releaseAfterTest(() => object.release());
    return object;
  }

  write(address: number, bytes: Uint8Array): void {
    if (failed(this.mm.write(address, bytes))) throw new Error('write to VMM memory');
  }

  read(address: number, length: number): Uint8Array {
    const bytes = this.mm.read(address, length);
    if (failed(bytes)) throw new Error('read from VMM memory');
    return bytes;
  }

  /** Starts KVM_MEMORY_ENCRYPT_OP; the command's structure lies in the VMM's memory. */
  startCommand(vmFd: number, id: number, data: Uint8Array | null, sevFd = this.sevFd): Started<Result<number>> {
    if (data !== null) this.write(this.scratch + PAGE_SIZE, data);
    const address = data === null ? 0n : BigInt(this.scratch + PAGE_SIZE);
    this.write(this.scratch, kvm_sev_cmd.encode({ id, data: address, error: ERROR_UNTOUCHED, sev_fd: sevFd }));
    return this.process.startIoctl(vmFd, IOCTL.KVM_MEMORY_ENCRYPT_OP, this.scratch);
  }

  command(vmFd: number, name: KvmSevCmdName | number, data: Uint8Array | null = null, sevFd = this.sevFd): SevAnswer {
    const id = typeof name === 'number' ? name : KVM_SEV_CMD[name];
    const result = this.startCommand(vmFd, id, data, sevFd).result();
    if (result === undefined) throw new Error('the command waits');
    return {
      result: errnoOf(result),
      error: kvm_sev_cmd.decode(this.read(this.scratch, kvm_sev_cmd.size)).error,
      data: data === null ? new Uint8Array(0) : this.read(this.scratch + PAGE_SIZE, data.length),
      failure: failed(result) ? result : null,
    };
  }

  must(answer: SevAnswer): SevAnswer {
    if (answer.failure !== null) throw new Error(`${answer.failure.errno} ${answer.failure.reason} ${answer.error}`);
    return answer;
  }

  createGuest(vcpus: number, type = 0): Guest {
    const { fd, vm } = this.process.createVm(type);
    return { vmm: this, fd, vm, vcpus: Array.from({ length: vcpus }, (_, id) => this.process.createVcpu(fd, id)) };
  }

  /** A slot of guest memory at a guest physical address. */
  addSlot({ fd }: Pick<Guest, 'fd'>, slot: number, gpa: number, address: number, bytes: number): void {
    const region = { slot, guest_phys_addr: BigInt(gpa), memory_size: BigInt(bytes), userspace_addr: BigInt(address) };
    this.process.must(this.process.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region)));
  }

  /** A VM that is a SEV (or SEV-ES) guest, with vCPUs; LAUNCH_START done. With `features` it is a typed SEV-ES VM. */
  createSevGuest({ vcpus = 1, es = false, policy = es ? 4 : 0, features, irqchip = false }: SevGuestOptions = {}): Guest {
    const { fd, vm } = this.process.createVm(features === undefined ? VM_TYPE.DEFAULT : VM_TYPE.SEV_ES);
    if (features === undefined) this.must(this.command(fd, es ? 'ES_INIT' : 'INIT'));
    else this.must(this.command(fd, 'INIT2', kvm_sev_init.encode({ vmsa_features: features })));
    if (irqchip) this.process.must(this.process.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
    const made = Array.from({ length: vcpus }, (_, id) => this.process.createVcpu(fd, id));
    this.must(this.command(fd, 'LAUNCH_START', kvm_sev_launch_start.encode({ policy })));
    return { vmm: this, fd, vm, vcpus: made };
  }

  /** LAUNCH_UPDATE_DATA of a range of the VMM's memory. */
  updateData({ fd }: Pick<Guest, 'fd'>, address: number, length: number): SevAnswer {
    return this.command(fd, 'LAUNCH_UPDATE_DATA', kvm_sev_launch_update_data.encode({ uaddr: BigInt(address), len: length }));
  }

  status({ fd }: Pick<Guest, 'fd'>) {
    const answer = this.command(fd, 'GUEST_STATUS', new Uint8Array(kvm_sev_guest_status.size));
    return { ...answer, ...kvm_sev_guest_status.decode(answer.data) };
  }

  region(fd: number, request: 'REG' | 'UNREG', address: number, size: number): number | string {
    const number = request === 'REG' ? IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION : IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION;
    return this.process.try(fd, number, kvm_enc_region.encode({ addr: BigInt(address), size: BigInt(size) }));
  }

  private contextArg(cap: number, sourceFd: number): Uint8Array {
    return kvm_enable_cap.encode({ cap, args: [BigInt.asUintN(64, BigInt(sourceFd)), 0n, 0n, 0n] });
  }

  move(fd: number, sourceFd: number): Result<number> {
    return this.process.ioctl(fd, IOCTL.KVM_ENABLE_CAP, this.contextArg(KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, sourceFd));
  }

  startMove(fd: number, sourceFd: number, between?: () => void): Started<Result<number>> {
    const arg = this.contextArg(KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, sourceFd);
    return this.process.startIoctl(fd, IOCTL.KVM_ENABLE_CAP, arg, between);
  }

  copy(fd: number, sourceFd: number): Result<number> {
    return this.process.ioctl(fd, IOCTL.KVM_ENABLE_CAP, this.contextArg(KVM_CAP.VM_COPY_ENC_CONTEXT_FROM, sourceFd));
  }

  /** As `move`, with the errno's name for a failure. */
  tryMove(fd: number, sourceFd: number): number | string {
    return errnoOf(this.move(fd, sourceFd));
  }

  /** SCM_RIGHTS: the other process gets a descriptor for the same file. */
  send(fd: number, to: Vmm): number {
    const file = this.process.process.files.lookup(fd);
    if (file === undefined) throw new Error(`descriptor ${fd} is not open`);
    return this.process.must(to.process.process.files.install(file.get(), true));
  }

  /** Starts a vCPU in 16-bit code at a guest physical address below 64 KiB, with flat segments. */
  startAt(vcpuFd: number, ip: number): void {
    const sregs = new Uint8Array(kvm_sregs.size);
    this.process.must(this.process.ioctl(vcpuFd, IOCTL.KVM_GET_SREGS, sregs));
    const value = kvm_sregs.decode(sregs);
    const cs = { ...value.cs, base: 0n, selector: 0 };
    this.process.must(this.process.ioctl(vcpuFd, IOCTL.KVM_SET_SREGS, kvm_sregs.encode({ ...value, cs })));
    this.process.must(this.process.ioctl(vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: BigInt(ip), rflags: 2n })));
  }

  run(vcpuFd: number): number | string {
    return this.process.try(vcpuFd, IOCTL.KVM_RUN);
  }
}

export interface SevRig {
  readonly host: TestHost;
  /** The first VMM. */
  readonly vmm: Vmm;
  /** One more process with `/dev/sev`. */
  spawn(): Vmm;
}

/** A host with SEV and SEV-ES and a VMM. */
export const createSevRig = (config: Partial<HostConfig> = {}, scheduler = new Scheduler(), clock?: Clock): SevRig => {
  const host = createTestHost(config, scheduler, clock);
  return { host, vmm: new Vmm(host), spawn: () => new Vmm(host.spawn()) };
};

/** `out imm8, al`; then HLT for ever. */
export const OUT_AND_HALT = (port: number): Uint8Array => Uint8Array.of(0xe6, port, 0xf4, 0xeb, 0xfd);

/** Launches with VMSAs, as the selftest does: the guest stays in LAUNCHING. */
export const esGuest = (vmm: Vmm, vcpus: number): Guest => {
  const guest = vmm.createSevGuest({ es: true, vcpus });
  vmm.must(vmm.command(guest.fd, 'LAUNCH_UPDATE_VMSA'));
  return guest;
};
