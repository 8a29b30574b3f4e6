import { PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import { FdTable } from '../kernel/fs/fd-table.js';
import { type File, type FileOperations, OPEN } from '../kernel/fs/file.js';
import { inlineArg } from '../kernel/fs/inline-copy.js';
import type { Kernel } from '../kernel/kernel.js';
import { markDiscarded } from '../kernel/kvm/discarded.js';
import { VcpuFile } from '../kernel/kvm/vcpu-file.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { VmFile } from '../kernel/kvm/vm-file.js';
import { VmPause } from '../kernel/kvm/vm-pause.js';
import type { AddressSpace } from '../kernel/mm/address-space.js';
import type { Process } from '../kernel/process/process.js';
import type { Task } from '../kernel/sched/task.js';
import type { MightSleep } from '../kernel/sched/wait.js';
import { open } from '../kernel/syscalls/descriptors.js';
import { ioctl } from '../kernel/syscalls/ioctl.js';
import { KVM_PIT } from '../kernel/uapi/constants.js';
import { IOCTL } from '../kernel/uapi/ioctls.js';
import { kvm_pit_config } from '../kernel/uapi/irq-structs.js';
import { kvm_enable_cap, kvm_enc_region, kvm_userspace_memory_region } from '../kernel/uapi/kvm-structs.js';
import { checkCapabilities } from './capabilities.js';
import { checkCpuid } from './check-cpuid.js';
import { FetchedPages } from './fetched-pages.js';
import type { DestinationGuest, GuestDescription, WiringDescription } from './guest.js';
import { logArrivals } from './guest-pages.js';
import { atOnce } from './kernel-call.js';
import { KINDS } from './kinds.js';
import { type MemoryRange, memoryRanges } from './memory-layout.js';
import { decodeParts } from './state-parts.js';
import { decodeWiring } from './wiring.js';

/** A slot of the new VM, and where its memory lies in the process. */
export interface ReceivedSlot {
  readonly id: number;
  readonly gpa: number;
  readonly bytes: number;
  readonly address: number;
}

/**
 * What the VMM finds in its process: the descriptors of what has arrived, its memory, and the wiring to be made again, whose
 * counts are known when the guest has stopped.
 */
export interface ReceivedVm extends WiringDescription {
  readonly vmFd: number;
  /** In the order of the source's. */
  readonly vcpuFds: readonly number[];
  /** `/dev/sev` of an encrypted guest. */
  readonly otherFds: readonly number[];
  readonly slots: readonly ReceivedSlot[];
}

/** Most bytes of guest memory that a source may ask for. */
const GUEST_BYTES_MAX = 2 ** 40;

/** /dev/kvm, until the VM is there. */
const FDS_MIN = 2;

/** EMFILE, ENOMEM: what is left of the process's descriptors and of the host's memory. */
const whyNoRoom = (
  { dram }: Kernel,
  { files }: Process,
  { kind, slots, vcpus, touchedPages }: GuestDescription,
): Failure | null => {
  const fds = Math.max(FDS_MIN, 1 + KINDS[kind].otherFds + vcpus.length);
  if (files.room < fds) return FdTable.full().with({ needed: String(fds), free: String(files.room) });
  const pinned = memoryRanges(slots.filter((slot) => slot.pinned)).reduce((sum, { bytes }) => sum + bytes / PAGE_SIZE, 0);
  const free = dram.total - dram.used - dram.reserved;
  if (pinned + touchedPages <= free) return null;
  const details = { frames: String(dram.total), needed: String(pinned + touchedPages), free: String(free) };
  return new Failure('ENOMEM', 'HOST_MEMORY_EXHAUSTED', 'alloc_pages', details);
};

/** Why a process of this host would not get such a guest; null if it would, as far as can be said without trying. */
export const whyNotReceived = (kernel: Kernel, process: Process, description: GuestDescription): Failure | null => {
  const bytes = description.slots.reduce((sum, slot) => sum + slot.bytes, 0);
  if (bytes > GUEST_BYTES_MAX || description.slots.some(({ bytes: size }) => size % PAGE_SIZE !== 0 || size <= 0))
    return new Failure('EINVAL', 'GUEST_MEMORY_SIZE', 'server/migration', { given: String(bytes) });
  const refused = checkCapabilities(description);
  if (refused !== null) return refused;
  return (
    checkCpuid(kernel, description) ??
    KINDS[description.kind].whyNotInitialised(kernel, process, description) ??
    whyNoRoom(kernel, process, description)
  );
};

/** What the platform of a source has to know of this one. */
export const targetOf = (kernel: Kernel, { kind }: GuestDescription): Result<Uint8Array> => KINDS[kind].target(kernel);

/** A guest does without its VMM's `/dev/sev`, but not without these. */
const isOfKvm = (ops: FileOperations): boolean => ops instanceof VmFile || ops instanceof VcpuFile;

/** The VM while it is made, and what has to go if it is not wanted. */
class Reception {
  readonly files: File[] = [];
  readonly vcpuFds: number[] = [];
  readonly otherFds: number[] = [];
  readonly slots: ReceivedSlot[] = [];
  /** What is mapped for the slots. */
  readonly memory: (MemoryRange & { readonly address: number })[] = [];
  vmFd = -1;
  pause: VmPause | null = null;

  constructor(
    readonly kernel: Kernel,
    readonly process: Process,
    readonly mm: AddressSpace,
  ) {}

  /** The VM of `vmFd`. */
  get vm(): Vm {
    const ops = this.process.files.lookup(this.vmFd)?.ops;
    if (!(ops instanceof VmFile)) throw new Error('no VM has been made');
    return ops.vm;
  }

  /** As the system calls of a VMM: VM, capabilities, interrupt controllers, memory, encryption, vCPUs. */
  *create(current: Task, description: GuestDescription): MightSleep<Failure | null> {
    const refused = (yield* this.createVm(current, description)) ?? (yield* this.createMemory(current, description));
    if (refused !== null) return refused;
    const opened = yield* KINDS[description.kind].initialise(current, this.vm, description);
    if (failed(opened)) return opened;
    for (const fd of opened) this.otherFds.push(this.keep(fd));
    return (yield* this.pinMemory(current, description)) ?? (yield* this.createVcpus(current, description));
  }

  private *createVm(current: Task, description: GuestDescription): MightSleep<Failure | null> {
    const { vmType, capabilities, bootCpuId, tscKhz } = description;
    const kvm = yield* open(this.kernel, current, '/dev/kvm', OPEN.RDWR);
    if (failed(kvm)) return kvm;
    const fd = yield* ioctl(current, kvm, IOCTL.KVM_CREATE_VM, { value: BigInt(vmType), user: this.mm });
    yield* this.process.files.close(current, kvm);
    if (failed(fd)) return fd;
    this.vmFd = this.keep(fd);
    const noChips = yield* this.createIrqchip(current, description);
    if (noChips !== null) return noChips;
    for (const { cap, argument } of capabilities) {
      const enable = kvm_enable_cap.encode({ cap, args: [argument, 0n, 0n, 0n] });
      const refused = yield* this.onVm(current, IOCTL.KVM_ENABLE_CAP, enable);
      if (refused !== null) return refused.with({ cap: String(cap) });
    }
    return (
      (yield* this.onVmWith(current, IOCTL.KVM_SET_BOOT_CPU_ID, bootCpuId)) ??
      (yield* this.onVmWith(current, IOCTL.KVM_SET_TSC_KHZ, tscKhz))
    );
  }

  private *createIrqchip(current: Task, { irqchip, pit, pitSpeaker }: GuestDescription): MightSleep<Failure | null> {
    if (!irqchip) return null;
    const flags = pitSpeaker ? KVM_PIT.SPEAKER_DUMMY : 0;
    const chip = yield* this.onVm(current, IOCTL.KVM_CREATE_IRQCHIP, new Uint8Array(0));
    return chip ?? (pit ? yield* this.onVm(current, IOCTL.KVM_CREATE_PIT2, kvm_pit_config.encode({ flags })) : null);
  }

  private *createMemory(current: Task, { slots }: GuestDescription): MightSleep<Failure | null> {
    const protection = { read: true, write: true, execute: false };
    for (const { start, bytes } of memoryRanges(slots)) {
      const address = this.mm.mmap({ length: bytes, protection, shared: false, object: null, offset: 0 });
      if (failed(address)) return address;
      this.memory.push({ start, bytes, address });
    }
    for (const { id, gpa, bytes, flags, userspaceAddress } of slots) {
      const address = this.addressOf(userspaceAddress);
      this.slots.push({ id, gpa, bytes, address });
      const place = { guest_phys_addr: BigInt(gpa), memory_size: BigInt(bytes), userspace_addr: BigInt(address) };
      const region = kvm_userspace_memory_region.encode({ slot: id, flags, ...place });
      const refused = yield* this.onVm(current, IOCTL.KVM_SET_USER_MEMORY_REGION, region);
      if (refused !== null) return refused;
    }
    return null;
  }

  private *pinMemory(current: Task, { slots }: GuestDescription): MightSleep<Failure | null> {
    for (const [index, { pinned, bytes }] of slots.entries()) {
      const address = this.slots[index]?.address;
      if (!pinned || address === undefined) continue;
      const region = kvm_enc_region.encode({ addr: BigInt(address), size: BigInt(bytes) });
      const refused = yield* this.onVm(current, IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION, region);
      if (refused !== null) return refused;
    }
    return null;
  }

  private *createVcpus(current: Task, { vcpus }: GuestDescription): MightSleep<Failure | null> {
    for (const { id, cpuid } of vcpus) {
      const fd = yield* ioctl(current, this.vmFd, IOCTL.KVM_CREATE_VCPU, { value: BigInt(id), user: this.mm });
      if (failed(fd)) return fd;
      this.vcpuFds.push(this.keep(fd));
      const result = yield* ioctl(current, fd, IOCTL.KVM_SET_CPUID2, inlineArg(this.mm, cpuid));
      if (failed(result)) return result;
    }
    return null;
  }

  private *onVm(current: Task, request: number, bytes: Uint8Array): MightSleep<Failure | null> {
    const result = yield* ioctl(current, this.vmFd, request, inlineArg(this.mm, bytes));
    return failed(result) ? result : null;
  }

  /** The same for an ioctl that takes a number. */
  private *onVmWith(current: Task, request: number, value: number): MightSleep<Failure | null> {
    const result = yield* ioctl(current, this.vmFd, request, { value: BigInt(value), user: this.mm });
    return failed(result) ? result : null;
  }

  /** Where what lies at an address of the source's process lies in this one. */
  private addressOf(there: number): number {
    const range = this.memory.find(({ start, bytes }) => there >= start && there < start + bytes);
    if (range === undefined) throw new Error('a slot has no memory');
    return range.address + (there - range.start);
  }

  /** EBADF, EBUSY: what the process has done with what was made for it leaves a guest that nobody can run as it was. */
  whyUnfit({ memslots, id }: Vm): Failure | null {
    const object = `vm ${id}`;
    const closed = this.files.find(({ ops, referenceCount }) => referenceCount === 0 && isOfKvm(ops));
    if (closed !== undefined)
      return new Failure('EBADF', 'RECEIVED_VM_CLOSED', 'server/migration', { object, closed: closed.ops.name });
    const isThere = ({ id: slot, gpa, bytes, address }: ReceivedSlot): boolean => {
      const found = memslots.get(slot);
      const place = found && [found.baseGfn * PAGE_SIZE, found.npages * PAGE_SIZE, found.userspaceAddr];
      return place?.join() === [gpa, bytes, address].join();
    };
    const gone = this.slots.find((slot) => !isThere(slot));
    if (gone === undefined) return null;
    return new Failure('EBUSY', 'RECEIVED_VM_CHANGED', 'server/migration', { object, what: `slot ${gone.id}` });
  }

  private keep(fd: number): number {
    const file = this.process.files.lookup(fd);
    if (file !== undefined) this.files.push(file);
    return fd;
  }

  /** Closes what was made, as far as the process has not done so itself, and gives its memory back. */
  undo(): void {
    this.pause?.release();
    const { process, mm, files, memory } = this;
    const fds = [this.vmFd, ...this.otherFds, ...this.vcpuFds];
    this.kernel.work('end of a migration that did not arrive', function* undo(current) {
      if (process.state.kind !== 'running') return;
      for (const fd of fds.reverse()) {
        const file = process.files.lookup(fd);
        if (file !== undefined && files.includes(file)) yield* process.files.close(current, fd);
      }
      for (const { address, bytes } of memory) mm.munmap(address, bytes);
    });
  }
}

const destinationGuest = (
  reception: Reception,
  { kind }: GuestDescription,
  target: Uint8Array,
  wired: (wiring: Partial<WiringDescription>) => void,
): DestinationGuest => {
  const { vm } = reception;
  const { whyNoPostCopy, destination } = KINDS[kind];
  const own = destination(vm);
  let fetched: FetchedPages | null = null;
  return {
    target,
    begin: (opening) => own.begin(opening),
    receive: (batch) => {
      if (fetched === null) return own.receive(batch);
      logArrivals(vm, batch.gfns);
      return fetched.receive(batch);
    },
    owe: (runs, handler) => {
      if (whyNoPostCopy !== null)
        return new Failure('EINVAL', 'POST_COPY_NOT_FOR_ENCRYPTED', 'server/migration', { guest: kind, why: whyNoPostCopy });
      fetched ??= new FetchedPages(reception.mm, reception.slots, handler);
      return fetched.expect(runs);
    },
    get missing() {
      return fetched?.size ?? 0;
    },
    lose: () => fetched?.lose(),
    restore: (state) => {
      const parts = decodeParts(state);
      if (failed(parts)) return parts;
      for (const part of parts) {
        const wiring = decodeWiring(part);
        const refused = wiring === null ? own.restore(part) : wired(wiring);
        if (refused) return refused;
      }
      return null;
    },
    prepare: () => own.prepare(),
    whyUnfit: () => reception.whyUnfit(vm),
    release: () => reception.pause?.release(),
    destroy: () => {
      // A KVM_RUN may wait for the pause to end; it must not find a guest.
      markDiscarded(vm);
      reception.undo();
    },
  };
};

/**
 * Makes room for a guest in a process of this host: a VM of the described shape whose vCPUs are held until the guest is
 * committed. KVM_RUN on them waits.
 * @param made told what is there as soon as it is, and again when the state of the stopped guest has come
 */
export const receiveGuest = (
  kernel: Kernel,
  process: Process,
  description: GuestDescription,
  made: (received: ReceivedVm) => void,
): Result<DestinationGuest> => {
  const { mm } = process;
  if (mm === null) return new Failure('ESRCH', 'PROCESS_WITHOUT_MEMORY', 'server/migration');
  const refused = whyNotReceived(kernel, process, description);
  if (refused !== null) return refused;
  const target = targetOf(kernel, description);
  if (failed(target)) return target;
  const reception = new Reception(kernel, process, mm);
  const failure = atOnce(kernel, process, 'migration', (current) => reception.create(current, description));
  if (failure !== null) {
    reception.undo();
    return failure;
  }
  reception.pause = VmPause.begin(reception.vm, () => {});
  const { vmFd, vcpuFds, otherFds, slots } = reception;
  let received: ReceivedVm = { vmFd, vcpuFds, otherFds, slots, ioeventfds: description.ioeventfds, irqfds: description.irqfds };
  made(received);
  return destinationGuest(reception, description, target, (wiring) => {
    received = { ...received, ...wiring };
    made(received);
  });
};
