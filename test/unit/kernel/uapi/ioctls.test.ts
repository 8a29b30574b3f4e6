import { describe, expect, it } from 'vitest';
import { IOCTL, IOCTLS, type IoctlName, ioctlName } from '../../../../server/kernel/uapi/ioctls.js';

/** From compiled headers, independent of the table: the numbers that a VMM sends. */
const NUMBERS: Partial<Record<IoctlName, number>> = {
  KVM_GET_API_VERSION: 0xae00,
  KVM_CREATE_VM: 0xae01,
  KVM_GET_MSR_INDEX_LIST: 0xc004_ae02,
  KVM_CHECK_EXTENSION: 0xae03,
  KVM_GET_SUPPORTED_CPUID: 0xc008_ae05,
  KVM_CREATE_VCPU: 0xae41,
  KVM_GET_DIRTY_LOG: 0x4010_ae42,
  KVM_SET_USER_MEMORY_REGION: 0x4020_ae46,
  KVM_SET_USER_MEMORY_REGION2: 0x40a0_ae49,
  KVM_IRQ_LINE: 0x4008_ae61,
  KVM_GET_IRQCHIP: 0xc208_ae62,
  KVM_SET_IRQCHIP: 0x8208_ae63,
  KVM_SET_GSI_ROUTING: 0x4008_ae6a,
  KVM_IRQFD: 0x4020_ae76,
  KVM_CREATE_PIT2: 0x4040_ae77,
  KVM_IOEVENTFD: 0x4040_ae79,
  KVM_SET_CLOCK: 0x4030_ae7b,
  KVM_GET_CLOCK: 0x8030_ae7c,
  KVM_RUN: 0xae80,
  KVM_GET_REGS: 0x8090_ae81,
  KVM_SET_SREGS: 0x4138_ae84,
  KVM_TRANSLATE: 0xc018_ae85,
  KVM_GET_FPU: 0x81a0_ae8c,
  KVM_SET_LAPIC: 0x4400_ae8f,
  KVM_SET_GUEST_DEBUG: 0x4048_ae9b,
  KVM_GET_VCPU_EVENTS: 0x8040_ae9f,
  KVM_GET_DEBUGREGS: 0x8080_aea1,
  KVM_ENABLE_CAP: 0x4068_aea3,
  KVM_GET_XSAVE: 0x9000_aea4,
  KVM_SIGNAL_MSI: 0x4020_aea5,
  KVM_GET_XCRS: 0x8188_aea6,
  KVM_MEMORY_ENCRYPT_OP: 0xc008_aeba,
  KVM_MEMORY_ENCRYPT_REG_REGION: 0x8010_aebb,
  KVM_CLEAR_DIRTY_LOG: 0xc018_aec0,
  KVM_SET_SREGS2: 0x4140_aecd,
  KVM_SET_MEMORY_ATTRIBUTES: 0x4020_aed2,
  KVM_CREATE_GUEST_MEMFD: 0xc040_aed4,
  KVM_PRE_FAULT_MEMORY: 0xc040_aed5,
  KVM_CREATE_DEVICE: 0xc00c_aee0,
  KVM_HAS_DEVICE_ATTR: 0x4018_aee3,
  SEV_ISSUE_CMD: 0xc010_5300,
};

describe('the table of ioctls', () => {
  it.each(Object.entries(NUMBERS))('%s has the number of the headers', (name, number) => {
    expect(IOCTLS.get(name)?.request.toString(16)).toBe(number.toString(16));
  });

  it('gives no number twice on one kind of file', () => {
    const seen = new Map<string, string>();
    for (const [name, { request, fds }] of IOCTLS)
      for (const fd of fds) {
        const key = `${fd} ${request.toString(16)}`;
        expect(seen.get(key), `${name} on ${fd}`).toBeUndefined();
        seen.set(key, name);
      }
  });

  it('tells two ioctls that share a number apart by the file', () => {
    expect(ioctlName(IOCTL.KVM_GET_STATS_FD, 'vm')).toBe('KVM_GET_STATS_FD');
    expect(ioctlName(IOCTL.KVM_RUN, 'vm')).toBeUndefined();
  });

  it('reserves a number for KVM_DISMANTLE_VM that no kernel uses', () => {
    expect(IOCTL.KVM_DISMANTLE_VM).toBe(0xaedf);
  });
});
