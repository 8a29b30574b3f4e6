import { expect } from 'vitest';
import type { PostMovePolicy, PostMovePolicyName } from '../../../../../server/kernel/kvm/post-move/policy.js';
import { KVM_CAP } from '../../../../../server/kernel/uapi/capabilities.js';
import { KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ATTR, KVM_EXIT } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL, IOCTLS } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_routing } from '../../../../../server/kernel/uapi/irq-structs.js';
import {
  kvm_coalesced_mmio_zone,
  kvm_device_attr,
  kvm_dirty_log,
  kvm_enable_cap,
  kvm_enc_region,
  kvm_ioeventfd,
  kvm_irqfd,
  kvm_userspace_memory_region,
  kvm_userspace_memory_region2,
} from '../../../../../server/kernel/uapi/kvm-structs.js';
import { createMovedWorld, DOORBELL, everyIoctl, GSI, type MovedWorld, runNewVcpu, runVcpu, SLOT } from './moved-world.js';

/** One written rule of a policy, as a check that an implementation of the policy passes or fails. */
export interface Rule {
  readonly name: string;
  /** Throws if the policy does not keep the rule. */
  check(policy: PostMovePolicy): void;
}

const rule = (name: string, check: (world: MovedWorld) => void): Rule => ({
  name,
  check: (policy) => check(createMovedWorld(policy)),
});

const UNKNOWN = 0xae99;
const VFIO_DETACH = { group: KVM_DEV_VFIO_FILE, attr: BigInt(KVM_DEV_VFIO_FILE_ATTR.DEL) };
const VFIO_ATTACH = { group: KVM_DEV_VFIO_FILE, attr: BigInt(KVM_DEV_VFIO_FILE_ATTR.ADD) };

const nameOf = (request: number, fd: 'vm' | 'vcpu' | 'device'): string =>
  [...IOCTLS].find(([, entry]) => entry.request === request && entry.fds.includes(fd))?.[0] ?? `0x${request.toString(16)}`;

/** Every ioctl of a file answers the same, whatever it is. */
const allAnswer = (
  world: MovedWorld,
  fd: 'vm' | 'vcpu' | 'device',
  answer: number | string,
  except: readonly number[] = [],
): void => {
  const call = { vm: world.vmIoctl, vcpu: world.vcpuIoctl, device: world.deviceIoctl }[fd];
  const answers = [...everyIoctl(fd, except), UNKNOWN].map((request) => `${nameOf(request, fd)} ${call(request)}`);
  expect(answers.filter((text) => !text.endsWith(` ${answer}`))).toEqual([]);
};

/** No ioctl of a file is refused by the gate. KVM_RUN is left to its own rules. */
const noneRefused = (world: MovedWorld, fd: 'vm' | 'vcpu' | 'device', except: readonly number[] = []): void => {
  const call = { vm: world.vmIoctl, vcpu: world.vcpuIoctl, device: world.deviceIoctl }[fd];
  const answers = [...everyIoctl(fd, [IOCTL.KVM_RUN, ...except]), UNKNOWN].map(
    (request) => `${nameOf(request, fd)} ${call(request)}`,
  );
  expect(answers.filter((text) => text.endsWith(' EIO'))).toEqual([]);
};

// -- calls that several rules make ------------------------------------------------------------------------------------

const deleteSlot = ({ vmIoctl, ram }: MovedWorld) =>
  vmIoctl(
    IOCTL.KVM_SET_USER_MEMORY_REGION,
    kvm_userspace_memory_region.encode({ slot: SLOT.slot, guest_phys_addr: BigInt(SLOT.gpa), userspace_addr: BigInt(ram) }),
  );
const deleteSlot2 = ({ vmIoctl }: MovedWorld) =>
  vmIoctl(IOCTL.KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2.encode({ slot: SLOT.slot }));
const addSlot = ({ vmIoctl, ram }: MovedWorld) => {
  const region = { slot: 3, memory_size: 0x1000n, userspace_addr: BigInt(ram), guest_phys_addr: 0x4000_0000n };
  return vmIoctl(IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region));
};
const ioeventfd = ({ vmIoctl, eventFd }: MovedWorld, flags: number) =>
  vmIoctl(IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode({ addr: BigInt(DOORBELL), len: 4, fd: eventFd, flags }));
const irqfd = ({ vmIoctl, irqEventFd }: MovedWorld, flags: number) =>
  vmIoctl(IOCTL.KVM_IRQFD, kvm_irqfd.encode({ fd: irqEventFd, gsi: GSI, flags }));
const region = ({ vmIoctl, ram }: MovedWorld, request: number) =>
  vmIoctl(request, kvm_enc_region.encode({ addr: BigInt(ram), size: BigInt(SLOT.bytes) }));
const launchFinish = ({ vmm, source }: MovedWorld) => vmm.command(source.fd, 'LAUNCH_FINISH').result;
const enableCap = ({ vmIoctl, destination }: MovedWorld, cap: number) =>
  vmIoctl(IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode({ cap, args: [BigInt(destination.fd), 0n, 0n, 0n] }));
const moveBack = ({ vmm, source, destination }: MovedWorld) => vmm.tryMove(source.fd, destination.fd);
const deviceAttr = ({ deviceIoctl }: MovedWorld, attr: { readonly group: number; readonly attr: bigint }) =>
  deviceIoctl(IOCTL.KVM_SET_DEVICE_ATTR, kvm_device_attr.encode(attr));
const runOld = (world: MovedWorld) => runVcpu(world, world.vcpuFd, world.vcpu);
const held = ({ source: { vm } }: MovedWorld, type: string): number => vm.kmem.reachableByType.get(type) ?? 0;
const devices = ({ source: { vm } }: MovedWorld): number => vm.buses.mmio.list.length + vm.buses.pio.list.length;
const hasIoeventfds = ({ source: { vm } }: MovedWorld): boolean => vm.buses.mmio.list.some(({ name }) => name === 'ioeventfd');
/** The irqfd's eventfd can be bound elsewhere only when the source's irqfd is gone. */
const irqfdElsewhere = ({ vmm, irqEventFd }: MovedWorld) => {
  const other = vmm.process.createVm();
  vmm.process.must(vmm.process.ioctl(other.fd, IOCTL.KVM_CREATE_IRQCHIP));
  return vmm.process.try(other.fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode({ fd: irqEventFd, gsi: GSI }));
};

const FAIL_ENTRY = `exit ${KVM_EXIT.FAIL_ENTRY}`;
const ENTERED = `exit ${KVM_EXIT.INTERNAL_ERROR}`;

const everythingIsEio: readonly Rule[] = [
  rule('every VM ioctl is EIO, with whatever number and argument', (world) => allAnswer(world, 'vm', 'EIO')),
  rule('every vCPU ioctl is EIO', (world) => allAnswer(world, 'vcpu', 'EIO')),
  rule('every device ioctl is EIO', (world) => allAnswer(world, 'device', 'EIO')),
  rule('a KVM_RUN that waited for its mutex returns EIO', ({ waited }) => expect(waited.run).toBe('EIO')),
  rule('other calls that were past the gate go on', ({ waited }) => {
    expect(waited.getRegs).toBe(0);
    expect(waited.createVcpu).toBeGreaterThan(0);
  }),
];

const nothingIsFreed = rule('nothing is freed until the fds are closed', (world) => {
  expect([held(world, 'kvm_memory_slot') > 0, hasIoeventfds(world), world.source.vm.memslots.size]).toEqual([true, true, 1]);
  world.vmm.process.closeAll();
  expect(world.source.vm.kmem.reachableBytes).toBe(0);
});

const dismantled = (world: MovedWorld): void => {
  expect([world.source.vm.memslots.size, held(world, 'kvm_memory_slot'), held(world, 'kvm_rmap_head')]).toEqual([0, 0, 0]);
  expect([devices(world), held(world, '_ioeventfd')]).toEqual([0, 0]);
};

const irqfdStays = rule('irqfds stay: their eventfds still belong to the zombie', (world) =>
  expect(irqfdElsewhere(world)).toBe('EBUSY'),
);

/** Names are what post-move.md section 2 and the docstring of each policy say. */
export const POLICY_RULES: Readonly<Record<PostMovePolicyName, readonly Rule[]>> = {
  VM_DEAD: [...everythingIsEio, nothingIsFreed],

  NOT_DEAD: [
    rule('no VM ioctl is refused', (world) => noneRefused(world, 'vm', [IOCTL.KVM_DISMANTLE_VM])),
    rule('no vCPU ioctl is refused', (world) => noneRefused(world, 'vcpu')),
    rule('no device ioctl is refused', (world) => noneRefused(world, 'device')),
    rule('memory-encryption calls find a VM that is no SEV guest', (world) => {
      expect([launchFinish(world), region(world, IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION)]).toEqual(['ENOTTY', 'ENOTTY']);
    }),
    rule('an old vCPU gets as far as VMRUN, which fails', (world) => {
      expect([world.waited.run, runOld(world)]).toEqual([0, FAIL_ENTRY]);
    }),
    rule('a vCPU made after the move enters', (world) => expect(runNewVcpu(world)).toBe(ENTERED)),
    rule('the context can move back', (world) => expect(moveBack(world)).toBe(0)),
    rule('a teardown works', (world) => {
      expect([ioeventfd(world, 4), irqfd(world, 1), deleteSlot(world)]).toEqual([0, 0, 0]);
      expect(held(world, 'kvm_memory_slot')).toBe(0);
    }),
  ],

  ENC_DEAD: [
    rule('KVM_MEMORY_ENCRYPT_OP is EIO', (world) => expect(launchFinish(world)).toBe('EIO')),
    rule('REG_REGION is EIO', (world) => expect(region(world, IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION)).toBe('EIO')),
    rule('UNREG_REGION is EIO', (world) => expect(region(world, IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION)).toBe('EIO')),
    rule('KVM_MEMORY_ENCRYPT_OP on a vCPU is EIO', ({ vcpuIoctl }) => expect(vcpuIoctl(IOCTL.KVM_MEMORY_ENCRYPT_OP)).toBe('EIO')),
    rule('a move into it is EIO', (world) => expect(enableCap(world, KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM)).toBe('EIO')),
    rule('a copy into it is EIO', (world) => expect(enableCap(world, KVM_CAP.VM_COPY_ENC_CONTEXT_FROM)).toBe('EIO')),
    rule('other capabilities can be enabled', (world) => expect(enableCap(world, KVM_CAP.EXCEPTION_PAYLOAD)).toBe(0)),
    rule('every other VM ioctl runs', (world) => {
      const encryption = [
        IOCTL.KVM_MEMORY_ENCRYPT_OP,
        IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION,
        IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION,
      ];
      noneRefused(world, 'vm', [...encryption, IOCTL.KVM_DISMANTLE_VM]);
    }),
    rule('every other vCPU ioctl runs', (world) => noneRefused(world, 'vcpu', [IOCTL.KVM_MEMORY_ENCRYPT_OP])),
    rule('an old vCPU gets as far as VMRUN, which fails', (world) => {
      expect([world.waited.run, runOld(world)]).toEqual([0, FAIL_ENTRY]);
    }),
    rule('a vCPU made after the move enters', (world) => expect(runNewVcpu(world)).toBe(ENTERED)),
  ],

  VM_MOVED: [
    rule('CHECK_EXTENSION passes', ({ vmIoctl }) => expect(vmIoctl(IOCTL.KVM_CHECK_EXTENSION, KVM_CAP.USER_MEMORY)).toBe(1)),
    rule('a memslot can be deleted', (world) => expect(deleteSlot(world)).toBe(0)),
    rule('a memslot can be deleted by the newer form', (world) => expect(deleteSlot2(world)).toBe(0)),
    rule('no memslot can be added', (world) => expect(addSlot(world)).toBe('EIO')),
    rule('an ioeventfd can be deassigned', (world) => expect(ioeventfd(world, 4)).toBe(0)),
    rule('no ioeventfd can be assigned', (world) => expect(ioeventfd(world, 0)).toBe('EIO')),
    rule('an irqfd can be deassigned', (world) => expect(irqfd(world, 1)).toBe(0)),
    rule('no irqfd can be assigned', (world) => expect(irqfd(world, 0)).toBe('EIO')),
    rule('SET_GSI_ROUTING passes', ({ vmIoctl }) =>
      expect(vmIoctl(IOCTL.KVM_SET_GSI_ROUTING, kvm_irq_routing.encode({ nr: 0 }))).toBe(0),
    ),
    rule('coalesced MMIO can be unregistered', ({ vmIoctl }) => {
      const zone = kvm_coalesced_mmio_zone.encode({ addr: 0xe000_0000n, size: 16 });
      expect(vmIoctl(IOCTL.KVM_UNREGISTER_COALESCED_MMIO, zone)).toBe(0);
    }),
    rule('UNREG_REGION passes, and finds no SEV guest', (world) =>
      expect(region(world, IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION)).toBe('ENOTTY'),
    ),
    rule('GET_DIRTY_LOG passes', ({ vmIoctl, ram }) =>
      expect(vmIoctl(IOCTL.KVM_GET_DIRTY_LOG, kvm_dirty_log.encode({ slot: SLOT.slot, dirty_bitmap: BigInt(ram) }))).toBe(0),
    ),
    rule('a stats fd can be had', ({ vmIoctl }) => expect(vmIoctl(IOCTL.KVM_GET_STATS_FD)).toBeGreaterThan(0)),
    rule('what is on no list is EIO', (world) => {
      const listed = [
        ...[IOCTL.KVM_CHECK_EXTENSION, IOCTL.KVM_SET_GSI_ROUTING, IOCTL.KVM_UNREGISTER_COALESCED_MMIO],
        ...[IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION, IOCTL.KVM_GET_DIRTY_LOG, IOCTL.KVM_GET_STATS_FD],
      ];
      allAnswer(world, 'vm', 'EIO', listed);
    }),
    rule('memory-encryption commands are EIO', (world) => {
      expect([launchFinish(world), region(world, IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION)]).toEqual(['EIO', 'EIO']);
    }),
    rule('a move into it is EIO', (world) => expect(moveBack(world)).toBe('EIO')),
    rule('no vCPU can be created', ({ vmIoctl }) => expect(vmIoctl(IOCTL.KVM_CREATE_VCPU, 9)).toBe('EIO')),
    rule('vCPU ioctls that read pass', ({ vcpuIoctl }) => {
      expect([vcpuIoctl(IOCTL.KVM_GET_REGS, new Uint8Array(144)), vcpuIoctl(IOCTL.KVM_GET_MP_STATE, new Uint8Array(4))]).toEqual([
        0, 0,
      ]);
    }),
    rule('vCPU ioctls that write are EIO', ({ vcpuIoctl }) => {
      expect([vcpuIoctl(IOCTL.KVM_SET_REGS, new Uint8Array(144)), vcpuIoctl(IOCTL.KVM_NMI)]).toEqual(['EIO', 'EIO']);
    }),
    rule('KVM_RUN is EIO, also where it waited for its mutex', (world) => {
      expect([world.waited.run, runOld(world)]).toEqual(['EIO', 'EIO']);
    }),
    rule('a device file can be detached', (world) => expect(deviceAttr(world, VFIO_DETACH)).not.toBe('EIO')),
    rule('no device file can be attached', (world) => expect(deviceAttr(world, VFIO_ATTACH)).toBe('EIO')),
  ],

  DISMANTLE_IOCTL: [
    rule('KVM_DISMANTLE_VM frees buses, memslots and page tables', (world) => {
      expect(world.vmIoctl(IOCTL.KVM_DISMANTLE_VM)).toBe(0);
      dismantled(world);
    }),
    rule('KVM_DISMANTLE_VM can be repeated', ({ vmIoctl }) => {
      expect([vmIoctl(IOCTL.KVM_DISMANTLE_VM), vmIoctl(IOCTL.KVM_DISMANTLE_VM)]).toEqual([0, 0]);
    }),
    rule('every other VM ioctl is EIO', (world) => allAnswer(world, 'vm', 'EIO', [IOCTL.KVM_DISMANTLE_VM])),
    ...everythingIsEio.slice(1),
    rule('the move itself frees nothing', (world) => expect([world.slotsAtReturn, hasIoeventfds(world)]).toEqual([1, true])),
    irqfdStays,
  ],

  DISMANTLE_ON_MOVE: [
    rule('when the move returns, buses, memslots and page tables are gone', (world) => {
      expect(world.slotsAtReturn).toBe(0);
      dismantled(world);
    }),
    rule('the teardown’s waits are part of the blackout', ({ graceByMove }) => expect(graceByMove).toBeGreaterThan(0)),
    ...everythingIsEio,
    irqfdStays,
  ],

  DISMANTLE_ASYNC: [
    rule('the move itself dismantles nothing', ({ slotsAtReturn, graceByMove }) => {
      expect([slotsAtReturn, graceByMove]).toEqual([1, 0]);
    }),
    rule('a worker frees buses, memslots and page tables afterwards', dismantled),
    rule('the worker holds a reference on the VM', ({ referencesAtReturn }) => {
      // Beside the VM's file, those of two vCPUs and that of the device.
      expect(referencesAtReturn).toBe(4 + 1);
    }),
    ...everythingIsEio,
    irqfdStays,
  ],

  SUCCEED_SILENTLY: [
    rule('every VM ioctl returns 0, KVM_CREATE_VCPU among them', (world) => {
      const before = world.vmm.process.process.files.size;
      allAnswer(world, 'vm', 0);
      expect(world.vmm.process.process.files.size).toBe(before);
    }),
    rule('every vCPU ioctl returns 0, with the old exit_reason', (world) => {
      const before = world.vcpu.arch.run.exitReason;
      allAnswer(world, 'vcpu', 0);
      expect(runOld(world)).toBe(`exit ${before}`);
    }),
    rule('every device ioctl returns 0', (world) => allAnswer(world, 'device', 0)),
    rule('nothing is done', (world) => {
      expect([deleteSlot(world), ioeventfd(world, 4), irqfd(world, 1)]).toEqual([0, 0, 0]);
      expect([world.source.vm.memslots.size, hasIoeventfds(world), irqfdElsewhere(world)]).toEqual([1, true, 'EBUSY']);
    }),
    rule('nothing is written to the caller’s memory', ({ vcpuIoctl }) => {
      const regs = new Uint8Array(144).fill(0x5a);
      expect([vcpuIoctl(IOCTL.KVM_GET_REGS, regs), regs.every((byte) => byte === 0x5a)]).toEqual([0, true]);
    }),
    rule('a KVM_RUN that waited for its mutex returns EIO', ({ waited }) => expect(waited.run).toBe('EIO')),
    nothingIsFreed,
  ],

  BUGGED_ONLY: [
    rule('no VM ioctl is refused', (world) => noneRefused(world, 'vm', [IOCTL.KVM_DISMANTLE_VM])),
    rule('no vCPU ioctl but KVM_RUN is refused', (world) => noneRefused(world, 'vcpu')),
    rule('a vCPU that existed at the move never enters again', (world) => {
      expect([world.waited.run, runOld(world), runOld(world)]).toEqual(['EIO', 'EIO', 'EIO']);
    }),
    rule('a vCPU made after the move enters', (world) => expect(runNewVcpu(world)).toBe(ENTERED)),
    rule('a move back succeeds, and strands the guest', (world) => {
      expect([moveBack(world), runOld(world)]).toEqual([0, 'EIO']);
    }),
    rule('memory-encryption calls find a VM that is no SEV guest', (world) => expect(launchFinish(world)).toBe('ENOTTY')),
  ],

  VCPU_DEAD: [
    rule('no VM ioctl but KVM_CREATE_VCPU is refused', (world) =>
      noneRefused(world, 'vm', [IOCTL.KVM_CREATE_VCPU, IOCTL.KVM_DISMANTLE_VM]),
    ),
    rule('no device ioctl is refused', (world) => noneRefused(world, 'device')),
    rule('KVM_CREATE_VCPU is EIO, also where it waited for kvm->lock', ({ vmIoctl, waited }) => {
      expect([waited.createVcpu, vmIoctl(IOCTL.KVM_CREATE_VCPU, 9)]).toEqual(['EIO', 'EIO']);
    }),
    rule('every vCPU ioctl is EIO, also where it waited for the mutex', (world) => {
      expect([world.waited.getRegs, world.waited.run]).toEqual(['EIO', 'EIO']);
      // Tested under the mutex: a request that is none of KVM's does not get so far.
      allAnswer(world, 'vcpu', 'EIO');
    }),
    rule('memory-encryption calls find a VM that is no SEV guest', (world) => expect(launchFinish(world)).toBe('ENOTTY')),
    rule('a move back succeeds, and strands the guest', (world) => {
      expect([moveBack(world), runOld(world)]).toEqual([0, 'EIO']);
    }),
  ],
};
