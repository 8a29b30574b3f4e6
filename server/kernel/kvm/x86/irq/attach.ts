import { REQUEST, type Vcpu } from '../../vcpu.js';
import type { Vm } from '../../vm.js';
import { injectNmi } from '../inject.js';
import { guestTsc } from '../tsc.js';
import { APIC_BASE_AT_RESET, APIC_BASE_BSP } from './apic-base.js';
import { IRQ_KMEM_SIZE } from './irq-kmem.js';
import { Lapic, type LapicHost } from './lapic.js';
import { lapicReset } from './lapic-state.js';
import { type IrqSettings, VmIrq } from './vm-irq.js';

/** Where the interrupt controllers meet `Vm` and `Vcpu`; everything else in this folder knows neither. */

/** The interrupt controllers of a VM, as `kvm_arch_init_vm` leaves them: none yet. */
export const createVmIrq = (vm: Vm, settings: IrqSettings): VmIrq =>
  new VmIrq(settings, {
    clock: vm.kernel.clock,
    timers: vm.kernel.timers,
    kmem: vm.kmem,
    x2apicIcrIsSplit: vm.kernel.config.vendor === 'amd',
    *lapics() {
      for (const { arch } of vm.vcpus) if (arch.lapic !== null) yield arch.lapic;
    },
  });

const lapicHost = (vcpu: Vcpu): LapicHost => ({
  id: vcpu.id,
  request: (bit) => vcpu.request(bit),
  kick: () => vcpu.arch.kick(),
  injectNmi: () => injectNmi(vcpu),
  reportTprAccess: (isWrite) => {
    if (!vcpu.arch.tprAccessReporting) return;
    vcpu.arch.tprAccess = { isWrite };
    vcpu.request(REQUEST.REPORT_TPR_ACCESS);
  },
  get cpuidX2apic() {
    return vcpu.arch.cpuid.has('X2APIC');
  },
  get guestTsc() {
    return guestTsc(vcpu);
  },
  get tscKhz() {
    return vcpu.arch.tscKhz;
  },
});

/** `kvm_vcpu_is_reset_bsp`. */
const isBootProcessor = (vcpu: Vcpu): boolean => vcpu.vm.arch.bspVcpuId === vcpu.id;

/** The APIC's part of `kvm_vcpu_reset`; `kvm_lapic_reset` with the base register before it. */
export const kvmLapicReset = (vcpu: Vcpu, init: boolean): void => {
  const { lapic } = vcpu.arch;
  const base = isBootProcessor(vcpu) ? APIC_BASE_AT_RESET | APIC_BASE_BSP : APIC_BASE_AT_RESET;
  if (lapic === null) {
    if (!init) vcpu.arch.apicBase = base;
    return;
  }
  if (!init) lapic.setBase(base);
  lapicReset(lapic, init);
};

/** `kvm_create_lapic`, where the VM has an irqchip, and the RESET of a new vCPU. */
export const kvmCreateLapic = (vcpu: Vcpu): void => {
  const { vm, arch } = vcpu;
  if (!vm.arch.irqchipInKernel) return;
  const charges = [
    vm.kmem.charge('kvm_lapic', IRQ_KMEM_SIZE.kvm_lapic),
    vm.kmem.charge('kvm_lapic_regs', IRQ_KMEM_SIZE.kvm_lapic_regs),
  ];
  arch.lapic = new Lapic(vm.arch.irq, lapicHost(vcpu), charges);
  kvmLapicReset(vcpu, false);
};

/** `kvm_free_lapic`. */
export const kvmFreeLapic = ({ arch }: Vcpu): void => {
  arch.lapic?.free();
  arch.lapic = null;
};
