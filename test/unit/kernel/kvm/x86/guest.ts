import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../../../../server/kernel/config.js';
import { failed, type Result } from '../../../../../server/kernel/failure.js';
import type { Kernel } from '../../../../../server/kernel/kernel.js';
import { createHost } from '../../../../../server/kernel/kvm/host.js';
import type { Vcpu } from '../../../../../server/kernel/kvm/vcpu.js';
import type { Vm } from '../../../../../server/kernel/kvm/vm.js';
import type { AddressSpace } from '../../../../../server/kernel/mm/address-space.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_run, kvm_run__io, kvm_run__mmio } from '../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_enable_cap, kvm_userspace_memory_region } from '../../../../../server/kernel/uapi/kvm-structs.js';
import type { Fields, Struct, StructValue, ValueOf } from '../../../../../server/kernel/uapi/struct.js';
import { kvm_regs, kvm_sregs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { trackHost } from '../../../../helpers/leftovers.js';
import { type Started, TestProcess } from '../test-host.js';

export const CODE = 0x1000;
export const STACK = 0x8000;
const PAGE = 4096;

export interface SlotOptions {
  readonly slot?: number;
  readonly flags?: number;
  /** Where in the guest's backing memory; the default is the same as the guest-physical address. */
  readonly offset?: number;
}

/** What KVM_RUN came back with. */
export interface Exit {
  readonly errno: string | null;
  readonly reason: number;
}

/** A VM with one vCPU in real mode at CODE and 64 KiB of RAM, on a host whose clock the test moves. */
export class Guest {
  readonly kernel: Kernel;
  readonly process: TestProcess;
  readonly vmFd: number;
  readonly vm: Vm;
  readonly vcpuFd: number;
  readonly vcpu: Vcpu;
  readonly mm: AddressSpace;
  /** User address of the backing memory: 256 KiB. */
  readonly memory: number;
  time = 0n;

  /** @param type of the VM: KVM_CREATE_VM's argument */
  constructor(config: Partial<HostConfig> = {}, before: (guest: Guest) => void = () => {}, type = 0) {
    this.kernel = trackHost(createHost({ ...DEFAULT_HOST_CONFIG, ...config }, { clock: { now: () => this.time } }));
    this.process = new TestProcess(this.kernel, this.kernel.spawn(null));
    const { mm } = this.process.process;
    if (mm === null) throw new Error('a process without memory');
    this.mm = mm;
    this.memory = this.map(256 * 1024);
    ({ fd: this.vmFd, vm: this.vm } = this.process.createVm(type));
    before(this);
    this.addSlot(0, 64 * 1024);
    ({ fd: this.vcpuFd, vcpu: this.vcpu } = this.process.createVcpu(this.vmFd));
    this.start(CODE);
  }

  map(length: number): number {
    const protection = { read: true, write: true, execute: false };
    const address = this.mm.mmap({ length, protection, shared: false, object: null, offset: 0 });
    if (failed(address)) throw new Error(address.reason);
    return address;
  }

  addSlot(gpa: number, size: number, { slot = 0, flags = 0, offset = gpa }: SlotOptions = {}): void {
    const region = { slot, flags, guest_phys_addr: BigInt(gpa), memory_size: BigInt(size) };
    const userspace_addr = BigInt(this.memory + offset);
    this.must(this.vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode({ ...region, userspace_addr }));
  }

  /** Bytes in hex, into the backing memory. */
  write(offset: number, hex: string): void {
    const refused = this.mm.write(this.memory + offset, Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));
    if (refused !== null) throw new Error(refused.reason);
  }

  read(offset: number, length: number): string {
    const bytes = this.mm.read(this.memory + offset, length);
    if (failed(bytes)) throw new Error(bytes.reason);
    return Buffer.from(bytes).toString('hex');
  }

  /** The program, in hex, at CODE. */
  program(hex: string): this {
    this.write(CODE, hex);
    return this;
  }

  /** Real mode, flat at 0. */
  start(rip: number): void {
    this.setSregs(({ cs }) => ({ cs: { ...cs, base: 0n, selector: 0 } }));
    this.setRegs({ rip: BigInt(rip), rflags: 2n, rsp: BigInt(STACK) });
  }

  // -- ioctls -------------------------------------------------------------------------------------------------------

  ioctl(fd: number, request: number, arg: number | bigint | Uint8Array = 0): Result<number> {
    return this.process.ioctl(fd, request, arg);
  }

  must(fd: number, request: number, arg: number | bigint | Uint8Array = 0): number {
    return this.process.must(this.ioctl(fd, request, arg));
  }

  /** The errno of a vCPU ioctl, or what it returned. */
  try(request: number, arg: number | bigint | Uint8Array = 0): string | number {
    return this.process.try(this.vcpuFd, request, arg);
  }

  get<F extends Fields>(request: number, layout: Struct<F>, given: Partial<ValueOf<F>> = {}): ValueOf<F> {
    const data = layout.encode(given);
    this.must(this.vcpuFd, request, data);
    return layout.decode(data);
  }

  enableCap(cap: number, argument: bigint): string | number {
    return this.process.try(this.vmFd, IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode({ cap, args: [argument, 0n, 0n, 0n] }));
  }

  get regs(): StructValue<typeof kvm_regs> {
    return this.get(IOCTL.KVM_GET_REGS, kvm_regs);
  }

  setRegs(values: Partial<StructValue<typeof kvm_regs>>): void {
    this.must(this.vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ ...this.regs, ...values }));
  }

  get sregs(): StructValue<typeof kvm_sregs> {
    return this.get(IOCTL.KVM_GET_SREGS, kvm_sregs);
  }

  setSregs(change: (now: StructValue<typeof kvm_sregs>) => Partial<StructValue<typeof kvm_sregs>>): void {
    if (this.trySregs(change) !== 0) throw new Error('KVM_SET_SREGS failed');
  }

  trySregs(change: (now: StructValue<typeof kvm_sregs>) => Partial<StructValue<typeof kvm_sregs>>): string | number {
    const now = this.sregs;
    return this.try(IOCTL.KVM_SET_SREGS, kvm_sregs.encode({ ...now, ...change(now) }));
  }

  // -- running ------------------------------------------------------------------------------------------------------

  /** Fields of kvm_run that userspace sets. */
  setRun(values: Partial<StructValue<typeof kvm_run>>): void {
    kvm_run.write(this.vcpu.runPages.run.bytes, values);
  }

  runPage<F extends Fields>(layout: Struct<F>): ValueOf<F> {
    return layout.decode(this.vcpu.runPages.run.bytes);
  }

  get io(): StructValue<typeof kvm_run__io> {
    return this.runPage(kvm_run__io);
  }

  get mmio(): StructValue<typeof kvm_run__mmio> {
    return this.runPage(kvm_run__mmio);
  }

  /** Answers a load that has exited. */
  answerMmio(hex: string): void {
    kvm_run__mmio.write(this.vcpu.runPages.run.bytes, { data: Buffer.from(hex, 'hex') });
  }

  run(): Exit {
    return this.exit(this.ioctl(this.vcpuFd, IOCTL.KVM_RUN));
  }

  /** KVM_RUN of a guest that does not come back by itself. `between` is called before each step of the scheduler. */
  startRun(between: () => void = () => {}): Started<Result<number>> {
    return this.process.startIoctl(this.vcpuFd, IOCTL.KVM_RUN, 0, between);
  }

  exit(result: Result<number> | undefined): Exit {
    if (result === undefined) throw new Error('KVM_RUN has not come back');
    return { errno: failed(result) ? result.errno : null, reason: this.runPage(kvm_run).exit_reason };
  }

  /** Kernel memory of a type that the VM holds, bytes. */
  kmem(type: string): number {
    return this.vm.kmem.reachableByType.get(type) ?? 0;
  }

  cost(primitive: Parameters<Kernel['costs']['charge']>[0]): number {
    return this.kernel.costs.counts.get(primitive) ?? 0;
  }
}

/** Bytes of `pages` pages. */
export const pages = (count: number): number => count * PAGE;
