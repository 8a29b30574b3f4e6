import { EncryptionKind, IoBus, SevGuestState, type VmInit, VmState, type VmSummaryInit } from '../../../gen/messages.js';
import type { GuestSummary } from '../../hardware/amd/secure-processor.js';
import { PAGE_SIZE } from '../../hardware/units.js';
import type { EventFd } from '../../kernel/fs/eventfd.js';
import { Ioeventfd } from '../../kernel/kvm/eventfd/ioeventfd.js';
import type { VmBuses } from '../../kernel/kvm/io-bus.js';
import { isSevEsGuest, isSevSnpGuest } from '../../kernel/kvm/svm/sev-info.js';
import type { Vcpu } from '../../kernel/kvm/vcpu.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import type { VmLife } from '../../kernel/kvm/vm-life.js';
import { kvm_run } from '../../kernel/uapi/kvm-run.js';
import { kmemView } from './kmem.js';
import { policyNumber } from './policy.js';

const STATE: Readonly<Record<VmLife['kind'], number>> = {
  alive: VmState.VM_STATE_ALIVE,
  moved: VmState.VM_STATE_MOVED,
  dead: VmState.VM_STATE_DEAD,
};

const BUS: Readonly<Record<keyof VmBuses, number>> = {
  mmio: IoBus.IO_BUS_MMIO,
  pio: IoBus.IO_BUS_PIO,
  ccw: IoBus.IO_BUS_VIRTIO_CCW_NOTIFY,
  fastMmio: IoBus.IO_BUS_FAST_MMIO,
};
const BUSES = ['mmio', 'pio', 'ccw', 'fastMmio'] as const;

/** The firmware has one state more than KVM has names for: 6, sent. */
const GUEST_STATE: Readonly<Record<GuestSummary['state'], number>> = {
  'launch-update': SevGuestState.SEV_GUEST_STATE_LAUNCHING,
  'launch-secret': SevGuestState.SEV_GUEST_STATE_SECRET,
  running: SevGuestState.SEV_GUEST_STATE_RUNNING,
  'send-update': SevGuestState.SEV_GUEST_STATE_SENDING,
  'receive-update': SevGuestState.SEV_GUEST_STATE_RECEIVING,
  sent: 6,
};

/** Numbers for eventfds, so that one that two VMs use is seen to be the same. */
export class EventFdNumbers {
  private readonly numbers = new WeakMap<EventFd, number>();
  private next = 1;

  of(eventfd: EventFd): number {
    let number = this.numbers.get(eventfd);
    if (number === undefined) {
      number = this.next++;
      this.numbers.set(eventfd, number);
    }
    return number;
  }
}

const deathView = ({ life }: Vm): VmInit['death_cause'] => {
  if (life.kind === 'alive') return null;
  const { cause } = life;
  switch (cause.kind) {
    case 'moved':
      return { moved: { to_vm_id: cause.toVm, by_pid: cause.byPid } };
    case 'sent':
      return { sent: { session: cause.session } };
    case 'discarded':
      return { discarded: {} };
    case 'bugged':
      return { bugged: { check: cause.check } };
  }
};

const vcpuView = (vcpu: Vcpu) => ({
  vcpu_id: vcpu.id,
  index: vcpu.index,
  mp_state: vcpu.arch.mpState,
  in_run: vcpu.mutex.locked,
  guest_state_protected: vcpu.vm.kernel.ops.guestStateProtected(vcpu),
  exits: vcpu.arch.stat.exits,
  instructions: vcpu.arch.executed,
  exit_reason: kvm_run.decode(vcpu.runPages.run.bytes).exit_reason,
  file_open: vcpu.fileOpen,
});

const memslotViews = (vm: Vm) => {
  const mappings = vm.arch.mmu.mappings();
  return [...vm.memslots].map((slot) => ({
    slot: slot.id,
    flags: slot.flags,
    guest_phys_addr: slot.baseGfn * PAGE_SIZE,
    memory_size: slot.npages * PAGE_SIZE,
    userspace_addr: slot.userspaceAddr,
    mapped_pages: mappings.filter(({ gfn }) => slot.contains(gfn)).length,
    guest_memfd: slot.gmem !== null,
  }));
};

const encryptionKind = (vm: Vm): number => {
  if (isSevSnpGuest(vm)) return EncryptionKind.ENCRYPTION_KIND_SEV_SNP;
  return isSevEsGuest(vm) ? EncryptionKind.ENCRYPTION_KIND_SEV_ES : EncryptionKind.ENCRYPTION_KIND_SEV;
};

const contextView = (vm: Vm): VmInit['encryption_context'] => {
  const { sev } = vm.arch;
  if (sev === null || !(sev.active || sev.needInit)) return null;
  const guest = vm.kernel.amd?.processor.guests().find(({ handle }) => handle === sev.handle);
  return {
    kind: sev.active ? encryptionKind(vm) : EncryptionKind.ENCRYPTION_KIND_UNSPECIFIED,
    asid: sev.asid,
    handle: sev.handle,
    guest_state: guest === undefined ? 0 : GUEST_STATE[guest.state],
    policy: sev.policy,
    sev_fd: sev.fd,
    vmsa_features: sev.vmsaFeatures,
    ghcb_version: sev.ghcbVersion,
    need_init: sev.needInit,
    regions: sev.regions.map(({ address, size }) => ({ addr: address, size })),
    pages_locked: sev.pagesLocked,
    mirror_of_vm_id: sev.encContextOwner?.id ?? 0,
    mirror_vm_ids: [...sev.mirrorVms].map(({ id }) => id),
  };
};

/** One line on a VM. */
export const vmSummary = (vm: Vm): VmSummaryInit => ({
  vm_id: vm.id,
  owner_pid: vm.ownerPid,
  type: vm.type,
  state: STATE[vm.life.kind],
  vcpus: vm.vcpus.length,
  memslots: vm.memslots.size,
  asid: vm.arch.sev?.asid ?? 0,
  kmem_reachable_bytes: vm.kmem.reachableBytes,
  kmem_charged_bytes: vm.kmem.chargedBytes,
  file_open: vm.fileOpen,
});

/** A VM as debugfs and /proc would show it. */
export const vmView = (vm: Vm, eventfds: EventFdNumbers): VmInit => ({
  vm_id: vm.id,
  owner_pid: vm.ownerPid,
  type: vm.type,
  state: STATE[vm.life.kind],
  death_cause: deathView(vm),
  post_move_policy: policyNumber((vm.life.kind === 'moved' ? vm.life.policy : vm.postMovePolicy).name),
  dismantling: vm.dismantling === 'under-way',
  references: vm.references,
  file_open: vm.fileOpen,
  created_vcpus: vm.createdVcpus,
  memslots: memslotViews(vm),
  io_devices: BUSES.flatMap((bus) =>
    vm.buses[bus].list.map((device) => ({
      bus: BUS[bus],
      kind: device.name,
      addr: device instanceof Ioeventfd ? device.addr : device.address,
      len: device.length,
      datamatch: device instanceof Ioeventfd ? device.datamatch : null,
    })),
  ),
  irqfds: [...vm.irqfds].map((irqfd) => ({
    gsi: irqfd.gsi,
    eventfd_id: eventfds.of(irqfd.eventfd),
    resample: irqfd.resamplefd !== null,
    injected: irqfd.injected,
  })),
  vcpus: vm.vcpus.map(vcpuView),
  devices: [...vm.devices].map((device) => ({ type: device.type })),
  irqchip: { mode: vm.arch.irqchipMode, pit: vm.arch.irq.pit !== null, routes: vm.arch.irq.routes.size },
  encryption_context: contextView(vm),
  kmem: kmemView(vm.kmem),
});
