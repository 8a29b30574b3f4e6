import { describe, expect, it } from 'vitest';
import { VM_TYPE } from '../../../../../server/kernel/kvm/vm.js';
import { KVM_EXIT, KVM_MEM, KVM_MEMORY_ATTRIBUTE } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_run__memory_fault } from '../../../../../server/kernel/uapi/kvm-run.js';
import {
  kvm_create_guest_memfd,
  kvm_memory_attributes,
  kvm_userspace_memory_region2,
} from '../../../../../server/kernel/uapi/kvm-structs.js';
import { CODE, Guest, pages } from './guest.js';

const DATA = 0x10000;
const KVM_MEMORY_EXIT_FLAG_PRIVATE = 8n;
/** mov ax, 0x1000; mov ds, ax; mov al, [0]; mov [0], bl; hlt */
const EXCHANGE = 'b80010 8ed8 a00000 881e0000 f4';

/** A VM of KVM_X86_SW_PROTECTED_VM whose guest exchanges a byte at DATA: host memory or a guest_memfd, as the attribute says. */
class ProtectedGuest extends Guest {
  readonly gmem: number;

  constructor({ bound = true } = {}) {
    super({}, () => {}, VM_TYPE.SW_PROTECTED);
    this.program(EXCHANGE);
    this.gmem = this.must(this.vmFd, IOCTL.KVM_CREATE_GUEST_MEMFD, kvm_create_guest_memfd.encode({ size: BigInt(pages(1)) }));
    const region = { slot: 1, guest_phys_addr: BigInt(DATA), memory_size: BigInt(pages(1)) };
    const behind = bound ? { flags: KVM_MEM.GUEST_MEMFD, guest_memfd: this.gmem } : {};
    const request = { ...region, ...behind, userspace_addr: BigInt(this.memory + DATA) };
    this.must(this.vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2.encode(request));
  }

  convert(to: 'private' | 'shared'): void {
    const attributes = to === 'private' ? BigInt(KVM_MEMORY_ATTRIBUTE.PRIVATE) : 0n;
    const range = kvm_memory_attributes.encode({ address: BigInt(DATA), size: BigInt(pages(1)), attributes });
    this.must(this.vmFd, IOCTL.KVM_SET_MEMORY_ATTRIBUTES, range);
  }

  /** What the guest finds at DATA, where it leaves `byte`. */
  exchange(byte: number): number {
    this.start(CODE);
    this.setRegs({ rbx: BigInt(byte) });
    expect(this.run()).toEqual({ errno: null, reason: KVM_EXIT.HLT });
    return Number(this.regs.rax & 0xffn);
  }

  /** The fault that the next run of the guest ends with. */
  fault(): object {
    this.start(CODE);
    expect(this.run()).toEqual({ errno: 'EFAULT', reason: KVM_EXIT.MEMORY_FAULT });
    return this.runPage(kvm_run__memory_fault);
  }
}

const PRIVATE_FAULT = { flags: KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa: BigInt(DATA), size: BigInt(pages(1)) };

describe('memory of KVM_X86_SW_PROTECTED_VM', () => {
  it('is the host memory as long as it is shared', () => {
    const guest = new ProtectedGuest();
    guest.write(DATA, '11');
    expect(guest.exchange(0x22)).toBe(0x11);
    expect(guest.read(DATA, 1)).toBe('22');
  });

  it('is the guest_memfd where it is private: the host sees nothing of it, and keeps what it had', () => {
    const guest = new ProtectedGuest();
    guest.write(DATA, '11');
    guest.convert('private');
    expect(guest.exchange(0x22)).toBe(0);
    expect(guest.read(DATA, 1)).toBe('11');
  });

  it('changes between the two at each conversion, and both keep what they have', () => {
    const guest = new ProtectedGuest();
    guest.write(DATA, '11');
    guest.convert('private');
    guest.exchange(0x22);
    guest.convert('shared');
    expect(guest.exchange(0x33)).toBe(0x11);
    guest.convert('private');
    expect(guest.exchange(0x44)).toBe(0x22);
    expect(guest.read(DATA, 1)).toBe('33');
  });

  it('is a fault for userspace where it is private without a guest_memfd, and memory again once it is shared', () => {
    const guest = new ProtectedGuest({ bound: false });
    guest.write(DATA, '11');
    guest.convert('private');
    expect(guest.fault()).toEqual(PRIVATE_FAULT);
    guest.convert('shared');
    expect(guest.exchange(0)).toBe(0x11);
  });

  it('is a fault once the last descriptor of its guest_memfd is closed', () => {
    const guest = new ProtectedGuest();
    guest.convert('private');
    guest.exchange(0x22);
    guest.process.close(guest.gmem);
    expect(guest.fault()).toEqual(PRIVATE_FAULT);
  });
});
