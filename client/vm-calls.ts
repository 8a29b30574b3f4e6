import {
  type GetVmResponse,
  type Int64Init,
  KvmCap,
  type KvmClearDirtyLogInit,
  type KvmClockDataInit,
  type KvmCoalescedMmioZoneInit,
  KvmCreateDeviceFlag,
  type KvmCreateGuestMemfdInit,
  type KvmDirtyLogInit,
  type KvmEnableCapInit,
  type KvmEncRegionInit,
  type KvmIoeventfdInit,
  type KvmIrqchipInit,
  type KvmIrqfdInit,
  type KvmIrqLevelInit,
  type KvmIrqRoutingInit,
  type KvmMemoryAttributesInit,
  type KvmMsiInit,
  type KvmMsrFilterInit,
  type KvmPitConfigInit,
  type KvmPitState2Init,
  type KvmSevCmdInit,
  type KvmUserspaceMemoryRegion2Init,
  type KvmUserspaceMemoryRegionInit,
} from '../gen/messages.js';
import { HostService, KvmVm } from '../gen/services.js';
import { Device, deviceCalls } from './device.js';
import { File } from './file.js';
import { GuestMemfd } from './guest-memfd.js';
import { Descriptor, handleOf } from './handle.js';
import { type PostMovePolicyName, policyName, policyNumber } from './post-move-policy.js';
import { bare, type FdObject, ioctl, out, present, ret } from './syscall.js';
import { Vcpu } from './vcpu.js';

/** KVM_ENABLE_CAP with another VM's descriptor as its argument. */
const fromSource = (cap: number) => (fd: number, source: FdObject | number) => ({
  fd,
  enable_cap: { cap, args: [BigInt.asUintN(64, BigInt(typeof source === 'number' ? source : source.fd))] },
});

/**
 * The ioctls of a VM, under their names in Documentation/virt/kvm/api.rst. `EIO (gate)`: the VM is dead, or its context has
 * moved away and its post-move policy refuses the call, or the caller is not the process that made the VM.
 */
export const vmCalls = {
  /**
   * KVM_CREATE_VCPU: makes the vCPU with this id.
   * Errno: EIO (gate), EINVAL (id or number of vCPUs above the maximum), EEXIST (id taken, also by a closed
   * vCPU), EMFILE, ENOMEM.
   */
  createVcpu: ioctl(KvmVm.createVcpu, (fd, id: Int64Init) => ({ fd, id }), handleOf(Vcpu)),
  /**
   * KVM_CHECK_EXTENSION for this VM: ret is 0 if the capability is not there, else 1 or what it says.
   * Errno: EIO (gate); an unknown number is 0.
   */
  checkExtension: ioctl(KvmVm.checkExtension, (fd, extension: number) => ({ fd, extension }), ret),
  /**
   * KVM_ENABLE_CAP, also the intra-host move: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM with the source VM's fd in args[0].
   * Errno: EIO (gate), EINVAL (flags; unknown capability; bad or late argument; for a move: same VM, other
   * type, no SEV source, SEV destination, vCPUs that do not match), EBADF (source fd), EBUSY (another move
   * runs; a vCPU is being created), EEXIST, E2BIG, EINTR, ENOMEM.
   */
  enableCap: ioctl(KvmVm.enableCap, (fd, enableCap: KvmEnableCapInit) => ({ fd, enable_cap: enableCap }), ret),
  /**
   * KVM_SET_USER_MEMORY_REGION: makes, moves, changes or (memory_size 0) deletes a memory slot.
   * Errno: EIO (gate), EINVAL (alignment, flags, slot number, a change that is not allowed, delete of no slot),
   * EEXIST (overlap), ENOMEM.
   */
  setUserMemoryRegion: ioctl(KvmVm.setUserMemoryRegion, (fd, region: KvmUserspaceMemoryRegionInit) => ({ fd, region }), ret),
  /**
   * KVM_SET_USER_MEMORY_REGION2: the same, with a guest_memfd for private memory.
   * Errno: EIO (gate), EINVAL (as the older call; no guest_memfd of this VM; range outside the file or bound
   * already), EBADF (guest_memfd), EEXIST (overlap), ENOMEM.
   */
  setUserMemoryRegion2: ioctl(KvmVm.setUserMemoryRegion2, (fd, region: KvmUserspaceMemoryRegion2Init) => ({ fd, region }), ret),
  /**
   * KVM_SET_MEMORY_ATTRIBUTES: makes a range of guest memory private or shared.
   * Errno: EIO (gate), EINVAL (flags, attributes that the VM has not, alignment, wrap), ENOMEM.
   */
  setMemoryAttributes: ioctl(
    KvmVm.setMemoryAttributes,
    (fd, memoryAttributes: KvmMemoryAttributesInit) => ({ fd, memory_attributes: memoryAttributes }),
    ret,
  ),
  /**
   * KVM_CREATE_GUEST_MEMFD: makes a file of guest memory. It keeps the VM alive.
   * Errno: EIO (gate), EINVAL (flags, size), EMFILE, ENOMEM.
   */
  createGuestMemfd: ioctl(
    KvmVm.createGuestMemfd,
    (fd, guestMemfd: KvmCreateGuestMemfdInit) => ({ fd, guest_memfd: guestMemfd }),
    handleOf(GuestMemfd),
  ),
  /**
   * KVM_GET_DIRTY_LOG: which pages of a slot the guest has written; the bits are cleared, unless they are
   * cleared by hand.
   * Errno: EIO (gate), EINVAL (slot number), ENOENT (no slot, or it has no log), ENXIO (dirty ring), EFAULT
   * (bits are lost).
   */
  getDirtyLog: ioctl(KvmVm.getDirtyLog, (fd, dirtyLog: KvmDirtyLogInit) => ({ fd, dirty_log: dirtyLog }), out('dirty_log')),
  /**
   * KVM_CLEAR_DIRTY_LOG: clears the given bits and write-protects their pages again.
   * Errno: EIO (gate), EINVAL (slot number, range), ENOENT (no slot, or it has no log), ENXIO (dirty ring), EFAULT.
   */
  clearDirtyLog: ioctl(
    KvmVm.clearDirtyLog,
    (fd, clearDirtyLog: KvmClearDirtyLogInit) => ({ fd, clear_dirty_log: clearDirtyLog }),
    ret,
  ),
  /**
   * KVM_RESET_DIRTY_RINGS: write-protects again what userspace has harvested; ret is how many entries.
   * Errno: EIO (gate), EINVAL (no dirty ring).
   */
  resetDirtyRings: ioctl(KvmVm.resetDirtyRings, bare, ret),
  /**
   * KVM_IOEVENTFD: a guest's write to an address or port signals an eventfd without an exit; DEASSIGN undoes it.
   * Errno: EIO (gate), EINVAL (length, wrap, flags, no eventfd), EBADF (fd), EEXIST (collision), ENOENT
   * (deassign of what is not there), ENOSPC, ENOMEM.
   */
  ioeventfd: ioctl(KvmVm.ioeventfd, (fd, ioeventfd: KvmIoeventfdInit) => ({ fd, ioeventfd }), ret),
  /**
   * KVM_IRQFD: signalling an eventfd raises an interrupt line; DEASSIGN undoes it.
   * Errno: EIO (gate), EINVAL (flags, no in-kernel irqchip, no eventfd), EBADF (fd), EBUSY (the eventfd has an
   * irqfd already, in this VM or another), ENOMEM.
   */
  irqfd: ioctl(KvmVm.irqfd, (fd, irqfd: KvmIrqfdInit) => ({ fd, irqfd }), ret),
  /**
   * KVM_CREATE_IRQCHIP: PIC, IOAPIC and local APICs in the kernel.
   * Errno: EIO (gate), EEXIST (there is one), EINVAL (there are vCPUs), ENOTTY (TDX), ENOMEM.
   */
  createIrqchip: ioctl(KvmVm.createIrqchip, bare, ret),
  /**
   * KVM_GET_IRQCHIP: the state of a PIC or of the IOAPIC.
   * Errno: EIO (gate), ENXIO (no in-kernel irqchip), EINVAL (chip_id).
   */
  getIrqchip: ioctl(KvmVm.getIrqchip, (fd, irqchip: KvmIrqchipInit) => ({ fd, irqchip }), out('irqchip')),
  /**
   * KVM_SET_IRQCHIP: sets the state of a PIC or of the IOAPIC.
   * Errno: EIO (gate), ENXIO (no in-kernel irqchip), EINVAL (chip_id).
   */
  setIrqchip: ioctl(KvmVm.setIrqchip, (fd, irqchip: KvmIrqchipInit) => ({ fd, irqchip }), ret),
  /**
   * KVM_IRQ_LINE: sets the level of an interrupt line.
   * Errno: EIO (gate), ENXIO (no in-kernel irqchip).
   */
  irqLine: ioctl(KvmVm.irqLine, (fd, irqLevel: KvmIrqLevelInit) => ({ fd, irq_level: irqLevel }), ret),
  /**
   * KVM_IRQ_LINE_STATUS: the same, and `status` says what became of it.
   * Errno: EIO (gate), ENXIO (no in-kernel irqchip).
   */
  irqLineStatus: ioctl(KvmVm.irqLineStatus, (fd, irqLevel: KvmIrqLevelInit) => ({ fd, irq_level: irqLevel }), out('irq_level')),
  /**
   * KVM_SET_GSI_ROUTING: replaces the table from interrupt lines to pins and messages.
   * Errno: EIO (gate), ENXIO (no in-kernel irqchip), EINVAL (flags, more than 4096 entries, a bad entry), ENOMEM.
   */
  setGsiRouting: ioctl(KvmVm.setGsiRouting, (fd, irqRouting: KvmIrqRoutingInit) => ({ fd, irq_routing: irqRouting }), ret),
  /**
   * KVM_SIGNAL_MSI: sends a message-signalled interrupt; ret is positive if it was delivered, 0 if not.
   * Errno: EIO (gate), EINVAL (no in-kernel LAPIC; flags), EPERM (no vCPU).
   */
  signalMsi: ioctl(KvmVm.signalMsi, (fd, msi: KvmMsiInit) => ({ fd, msi }), ret),
  /**
   * KVM_REGISTER_COALESCED_MMIO: writes to a zone go to a ring that is read at the next exit.
   * Errno: EIO (gate), EINVAL (pio above 1), ENOSPC (too many), ENOMEM.
   */
  registerCoalescedMmio: ioctl(KvmVm.registerCoalescedMmio, (fd, zone: KvmCoalescedMmioZoneInit) => ({ fd, zone }), ret),
  /**
   * KVM_UNREGISTER_COALESCED_MMIO: removes the zones within a range.
   * Errno: EIO (gate), EINVAL (pio above 1).
   */
  unregisterCoalescedMmio: ioctl(KvmVm.unregisterCoalescedMmio, (fd, zone: KvmCoalescedMmioZoneInit) => ({ fd, zone }), ret),
  /**
   * KVM_CREATE_PIT2: an 8254 in the kernel.
   * Errno: EIO (gate), ENOENT (no in-kernel irqchip), EEXIST (there is one), ENOMEM.
   */
  createPit2: ioctl(KvmVm.createPit2, (fd, pitConfig: KvmPitConfigInit) => ({ fd, pit_config: pitConfig }), ret),
  /**
   * KVM_GET_PIT2: the state of the 8254.
   * Errno: EIO (gate), ENXIO (no in-kernel PIT).
   */
  getPit2: ioctl(KvmVm.getPit2, bare, out('pit_state')),
  /**
   * KVM_SET_PIT2: sets the state of the 8254.
   * Errno: EIO (gate), ENXIO (no in-kernel PIT).
   */
  setPit2: ioctl(KvmVm.setPit2, (fd, pitState: KvmPitState2Init) => ({ fd, pit_state: pitState }), ret),
  /**
   * KVM_SET_NR_MMU_PAGES: limit of shadow page-table pages.
   * Errno: EIO (gate), EINVAL (below 64).
   */
  setNrMmuPages: ioctl(KvmVm.setNrMmuPages, (fd, nrMmuPages: Int64Init) => ({ fd, nr_mmu_pages: nrMmuPages }), ret),
  /**
   * KVM_SET_TSS_ADDR: where three pages for a real-mode TSS lie (Intel).
   * Errno: EIO (gate), EINVAL (above 4 GiB less three pages), EEXIST (a slot is there).
   */
  setTssAddr: ioctl(KvmVm.setTssAddr, (fd, tssAddr: Int64Init) => ({ fd, tss_addr: tssAddr }), ret),
  /**
   * KVM_SET_IDENTITY_MAP_ADDR: where a page for an identity map lies (Intel).
   * Errno: EIO (gate), EINVAL (there are vCPUs), EFAULT.
   */
  setIdentityMapAddr: ioctl(KvmVm.setIdentityMapAddr, (fd, identAddr: Int64Init) => ({ fd, ident_addr: identAddr }), ret),
  /**
   * KVM_SET_BOOT_CPU_ID: the id of the vCPU that starts.
   * Errno: EIO (gate), EBUSY (there are vCPUs).
   */
  setBootCpuId: ioctl(KvmVm.setBootCpuId, (fd, bootCpuId: Int64Init) => ({ fd, boot_cpu_id: bootCpuId }), ret),
  /**
   * KVM_SET_CLOCK: sets the guest's kvmclock.
   * Errno: EIO (gate), EINVAL (flags).
   */
  setClock: ioctl(KvmVm.setClock, (fd, clockData: KvmClockDataInit) => ({ fd, clock_data: clockData }), ret),
  /**
   * KVM_GET_CLOCK: the guest's kvmclock in nanoseconds.
   * Errno: EIO (gate).
   */
  getClock: ioctl(KvmVm.getClock, bare, out('clock_data')),
  /**
   * KVM_SET_TSC_KHZ on a VM: frequency of the TSC of vCPUs that are made later, in kHz; 0 is the host's.
   * Errno: EIO (gate), EINVAL (out of range; there are vCPUs).
   */
  setTscKhz: ioctl(KvmVm.setTscKhz, (fd, tscKhz: Int64Init) => ({ fd, tsc_khz: tscKhz }), ret),
  /**
   * KVM_GET_TSC_KHZ on a VM: ret is the frequency of the TSC of vCPUs that are made later, in kHz.
   * Errno: EIO (gate).
   */
  getTscKhz: ioctl(KvmVm.getTscKhz, bare, ret),
  /**
   * KVM_X86_SET_MSR_FILTER: which MSRs the guest may read and write without userspace.
   * Errno: EIO (gate), EINVAL (flags, a bad range), E2BIG (more than 16 ranges), EFAULT, ENOMEM.
   */
  x86SetMsrFilter: ioctl(KvmVm.x86SetMsrFilter, (fd, msrFilter: KvmMsrFilterInit) => ({ fd, msr_filter: msrFilter }), ret),
  /**
   * KVM_CREATE_DEVICE: makes a device of the VM, for example kvm-vfio.
   * Errno: EIO (gate), ENODEV (type is not supported), EEXIST, EMFILE, ENOMEM.
   */
  createDevice: ioctl(
    KvmVm.createDevice,
    (fd, type: number) => ({ fd, create_device: { type } }),
    ({ create_device }, self) => new Device(self.caller, new Descriptor(present(create_device, 'create_device').fd)),
  ),
  /**
   * KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST: whether the type is supported, without making a device; 0.
   * Errno: EIO (gate), ENODEV (type is not supported).
   */
  testDevice: ioctl(
    KvmVm.createDevice,
    (fd, type: number) => ({ fd, create_device: { type, flags: KvmCreateDeviceFlag.KVM_CREATE_DEVICE_TEST } }),
    ret,
  ),
  /**
   * KVM_GET_STATS_FD: a file from which the VM's statistics can be read; it keeps the VM alive.
   * Errno: EIO (gate), EMFILE.
   */
  getStatsFd: ioctl(KvmVm.getStatsFd, bare, handleOf(File)),
  /**
   * KVM_DISMANTLE_VM, the ioctl of a proposal that no kernel has: frees PIO and MMIO buses, memory slots and
   * all page tables, as far as it can; it can be repeated.
   * Errno: EIO (gate, but for a dead VM under the policy DISMANTLE_IOCTL), ENOTTY (the policy does not offer
   * it), EINTR.
   */
  dismantleVm: ioctl(KvmVm.dismantleVm, bare, ret),
  /**
   * KVM_MEMORY_ENCRYPT_REG_REGION: pins memory that an encrypted guest will use.
   * Errno: EIO (gate), ENOTTY (no SEV guest), EINVAL (mirror; length), ENOMEM (pinning; limit of locked
   * memory), EFAULT.
   */
  memoryEncryptRegRegion: ioctl(KvmVm.memoryEncryptRegRegion, (fd, region: KvmEncRegionInit) => ({ fd, region }), ret),
  /**
   * KVM_MEMORY_ENCRYPT_UNREG_REGION: unpins a region that was registered with the same address and size.
   * Errno: EIO (gate), ENOTTY (no SEV guest), EINVAL (mirror; no such region).
   */
  memoryEncryptUnregRegion: ioctl(KvmVm.memoryEncryptUnregRegion, (fd, region: KvmEncRegionInit) => ({ fd, region }), ret),
  /**
   * KVM_MEMORY_ENCRYPT_OP: a SEV command by its number; the calls below are its commands, typed. Without data
   * it asks whether SEV is there.
   * Errno: EIO (gate), ENOTTY (no SEV), EFAULT, EINVAL (unknown command; mirror), EPERM (SNP), and those of the
   * command; `error` in the response is the firmware's status.
   */
  memoryEncryptOp: ioctl(KvmVm.memoryEncryptOp, (fd, sevCmd: KvmSevCmdInit) => ({ fd, sev_cmd: sevCmd }), out('sev_cmd')),
  ...deviceCalls,
  /**
   * KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: moves the encryption context of `source`, a VM or its descriptor in this process, into
   * this VM. What becomes of `source` is its post-move policy's choice.
   * Errno: EIO (gate), EBADF (source), EINVAL (same VM, other type, no SEV source, SEV destination, vCPUs that do not match),
   * EBUSY (another move of either VM runs; a vCPU is being created), EINTR, ENOMEM.
   */
  moveEncContextFrom: ioctl(KvmVm.enableCap, fromSource(KvmCap.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM), ret),
  /**
   * KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: makes this VM a mirror of `source`, with the same key.
   * Errno: EIO (gate), EBADF (source), EINVAL (same VM, no SEV source, SEV destination, there are vCPUs), EBUSY.
   */
  copyEncContextFrom: ioctl(KvmVm.enableCap, fromSource(KvmCap.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM), ret),
  /**
   * What debugfs and /proc would show of this VM: state, memslots, buses, irqfds, vCPUs, encryption context, kernel memory.
   * It is no ioctl: no gate stops it.
   * Errno: EBADF.
   */
  inspect: ioctl(HostService.getVm, bare, ({ vm }: GetVmResponse) => present(vm, 'vm')),
  /**
   * Chooses what a move will do to this VM; the answer is the policy before. It is no ioctl.
   * Errno: EBUSY (its context has moved already).
   */
  setPostMovePolicy: ioctl(
    HostService.setPostMovePolicy,
    (fd, policy: PostMovePolicyName) => ({ fd, policy: policyNumber(policy) }),
    ({ previous }) => policyName(previous),
  ),
} as const;
