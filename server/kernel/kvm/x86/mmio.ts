import type { Gpa } from '../../../hardware/units.js';
import type { Vcpu } from '../vcpu.js';
import { lapicMmioRead, lapicMmioWrite } from './irq/lapic-access.js';

/** `vcpu_mmio_read`: the vCPU's own APIC page, then the VM's MMIO bus. Null: nobody in the kernel answers. */
export const kernelMmioRead = (vcpu: Vcpu, address: Gpa, length: number): Uint8Array | null => {
  const { lapic } = vcpu.arch;
  return (lapic === null ? null : lapicMmioRead(lapic, address, length)) ?? vcpu.vm.buses.mmio.read(vcpu, address, length);
};

/** `vcpu_mmio_write`. False: the store goes to userspace. */
export const kernelMmioWrite = (vcpu: Vcpu, address: Gpa, bytes: Uint8Array): boolean => {
  const { lapic } = vcpu.arch;
  if (lapic !== null && lapicMmioWrite(lapic, address, bytes)) return true;
  return vcpu.vm.buses.mmio.write(vcpu, address, bytes) === 'handled';
};
