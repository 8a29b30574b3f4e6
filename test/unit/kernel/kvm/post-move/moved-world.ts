import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { failed, type Result } from '../../../../../server/kernel/failure.js';
import { createEventFd } from '../../../../../server/kernel/fs/eventfd.js';
import type { MovePhase } from '../../../../../server/kernel/kvm/move-phase.js';
import type { PostMovePolicy } from '../../../../../server/kernel/kvm/post-move/policy.js';
import type { Vcpu } from '../../../../../server/kernel/kvm/vcpu.js';
import { KVM_DEV_TYPE, KVM_MEM, KVM_MP_STATE } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL, IOCTLS, type IoctlFd } from '../../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_coalesced_mmio_zone,
  kvm_create_device,
  kvm_ioeventfd,
  kvm_irqfd,
  kvm_mp_state,
  kvm_userspace_memory_region,
} from '../../../../../server/kernel/uapi/kvm-structs.js';
import { createSevRig, errnoOf, type Guest, type Vmm } from '../svm/sev-rig.js';
import type { Started, TestArg } from '../test-host.js';

export const SLOT = { slot: 0, gpa: 0x10_0000, bytes: 16 * PAGE_SIZE } as const;
export const DOORBELL = 0xf000_1000;
export const GSI = 5;

/** A source whose context has moved, and what a VMM usually has on it. */
export interface MovedWorld {
  readonly vmm: Vmm;
  readonly source: Guest;
  readonly destination: Guest;
  readonly vcpuFd: number;
  readonly vcpu: Vcpu;
  readonly deviceFd: number;
  readonly eventFd: number;
  readonly irqEventFd: number;
  /** Userspace address of the source's RAM, and of the region that was registered. */
  readonly ram: number;
  /** Phases of the move. */
  readonly phases: readonly MovePhase['kind'][];
  /** SRCU grace periods that the move itself has waited for. */
  readonly graceByMove: number;
  /** Memslots of the source at the moment at which the move returned. */
  readonly slotsAtReturn: number;
  readonly referencesAtReturn: number;
  /** Calls that passed the gate before the move and waited for their lock until it was over. */
  readonly waited: { readonly run: number | string; readonly getRegs: number | string; readonly createVcpu: number | string };
  /** An ioctl on the source's VM: value, or errno's name. */
  vmIoctl(request: number, arg?: TestArg): number | string;
  vcpuIoctl(request: number, arg?: TestArg): number | string;
  deviceIoctl(request: number, arg?: TestArg): number | string;
}

/** Requests of a kind of file, but for those that need something of their own. */
export const everyIoctl = (fd: IoctlFd, except: readonly number[] = []): number[] =>
  [...IOCTLS.values()].filter(({ fds, request }) => fds.includes(fd) && !except.includes(request)).map(({ request }) => request);

const addEventFd = (vmm: Vmm): number => {
  const file = createEventFd(0, 0);
  if (failed(file)) throw new Error('no eventfd');
  return vmm.process.must(vmm.process.process.files.install(file, true));
};

/** A source with two vCPUs, irqchip, a slot with dirty log, ioeventfds, an irqfd, a device, and a registered region. */
const createSource = (vmm: Vmm) => {
  const { fd, vm } = vmm.process.createVm();
  vmm.must(vmm.command(fd, 'INIT'));
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
  const vcpus = [0, 1].map((id) => vmm.process.createVcpu(fd, id));
  vmm.must(vmm.command(fd, 'LAUNCH_START', new Uint8Array(40)));
  const ram = vmm.map(vmm.sharedMemory(SLOT.bytes), SLOT.bytes);
  const region = { slot: SLOT.slot, flags: KVM_MEM.LOG_DIRTY_PAGES, guest_phys_addr: BigInt(SLOT.gpa) };
  const memory = { memory_size: BigInt(SLOT.bytes), userspace_addr: BigInt(ram) };
  vmm.process.must(
    vmm.process.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode({ ...region, ...memory })),
  );
  vmm.region(fd, 'REG', ram, SLOT.bytes);
  const [eventFd, irqEventFd] = [addEventFd(vmm), addEventFd(vmm)];
  const io = { addr: BigInt(DOORBELL), len: 4, fd: eventFd };
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode(io)));
  vmm.process.must(
    vmm.process.ioctl(fd, IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode({ addr: 0xcf8n, len: 2, fd: eventFd, flags: 2 })),
  );
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode({ fd: irqEventFd, gsi: GSI })));
  const zone = kvm_coalesced_mmio_zone.encode({ addr: 0xe000_0000n, size: 16 });
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_REGISTER_COALESCED_MMIO, zone));
  const device = kvm_create_device.encode({ type: KVM_DEV_TYPE.VFIO });
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_CREATE_DEVICE, device));
  return { fd, vm, vcpus, ram, eventFd, irqEventFd, deviceFd: kvm_create_device.decode(device).fd };
};

const outcome = ({ result }: Started<Result<number>>): number | string => {
  const value = result();
  if (value === undefined) throw new Error('a call still waits after the move');
  return errnoOf(value);
};

/** Moves the source's context away under a policy, while three calls on the source wait for their locks. */
export const createMovedWorld = (policy: PostMovePolicy): MovedWorld => {
  const { vmm, host } = createSevRig();
  const { kernel } = host;
  const source = createSource(vmm);
  const [{ fd: vcpuFd, vcpu } = { fd: -1, vcpu: null }, second] = source.vcpus;
  if (vcpu === null || second === undefined) throw new Error('two vCPUs are needed');
  source.vm.postMovePolicy = policy;
  const destination = vmm.createGuest(2);

  // The move waits for the second vCPU with the first one's mutex and both kvm->locks held; behind it wait three calls.
  const holder = vmm.process.start(function* holding(current) {
    yield* second.vcpu.mutex.lock(current);
    yield { kind: 'interruptible', queue: second.vcpu.arch.wait, site: 'test' };
    second.vcpu.mutex.unlock(current);
  });
  const phases: MovePhase['kind'][] = [];
  let atReturn = { slots: 0, grace: 0, references: 0 };
  const grace = (): number => kernel.costs.counts.get('srcu_grace_period') ?? 0;
  const before = grace();
  const move = vmm.process.start(function* moving(current) {
    const observer = ({ kind }: MovePhase): void => {
      phases.push(kind);
      if (kind === 'done')
        atReturn = { slots: source.vm.memslots.size, grace: grace() - before, references: source.vm.references };
    };
    const op = kernel.ops.vmMoveEncContextFrom;
    return op === undefined ? null : yield* op(current, destination.vm, source.fd, { observer });
  });
  const run = vmm.process.startIoctl(vcpuFd, IOCTL.KVM_RUN);
  const getRegs = vmm.process.startIoctl(vcpuFd, IOCTL.KVM_GET_REGS, new Uint8Array(144));
  const createVcpu = vmm.process.startIoctl(source.fd, IOCTL.KVM_CREATE_VCPU, 7);
  holder.task.signal(2);
  while (kernel.scheduler.run());
  if (move.result() !== 0) throw new Error('the move was refused');

  const ioctl =
    (fd: number) =>
    (request: number, arg: TestArg = 0) =>
      vmm.process.try(fd, request, arg);
  return {
    vmm,
    source: { ...source, vmm },
    destination,
    vcpuFd,
    vcpu,
    deviceFd: source.deviceFd,
    eventFd: source.eventFd,
    irqEventFd: source.irqEventFd,
    ram: source.ram,
    phases,
    graceByMove: atReturn.grace,
    slotsAtReturn: atReturn.slots,
    referencesAtReturn: atReturn.references,
    waited: { run: outcome(run), getRegs: outcome(getRegs), createVcpu: outcome(createVcpu) },
    vmIoctl: ioctl(source.fd),
    vcpuIoctl: ioctl(vcpuFd),
    deviceIoctl: ioctl(source.deviceFd),
  };
};

/** KVM_RUN on a vCPU: errno, or the exit's number. */
export const runVcpu = ({ vmm }: MovedWorld, fd: number, vcpu: Vcpu): string => {
  const result = vmm.run(fd);
  return result === 0 ? `exit ${vcpu.arch.run.exitReason}` : String(result);
};

/** A vCPU that is made after the move, and made runnable; errno if it cannot be made. */
export const runNewVcpu = (world: MovedWorld): string => {
  const { vmm, source } = world;
  const made = vmm.process.ioctl(source.fd, IOCTL.KVM_CREATE_VCPU, 8);
  if (failed(made)) return made.errno;
  const vcpu = source.vm.vcpus.at(-1);
  const runnable = kvm_mp_state.encode({ mp_state: KVM_MP_STATE.RUNNABLE });
  vmm.process.must(vmm.process.ioctl(made, IOCTL.KVM_SET_MP_STATE, runnable));
  if (vcpu === undefined) throw new Error('no vCPU was made');
  return runVcpu(world, made, vcpu);
};
