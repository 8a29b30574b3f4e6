import { DEFAULT_HOST_CONFIG } from '../../../../../../server/kernel/config.js';
import { failed, type Result } from '../../../../../../server/kernel/failure.js';
import { EventFd } from '../../../../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../../../../server/kernel/fs/file.js';
import { createHost } from '../../../../../../server/kernel/kvm/host.js';
import type { Vcpu } from '../../../../../../server/kernel/kvm/vcpu.js';
import { KVM_CAP } from '../../../../../../server/kernel/uapi/capabilities.js';
import { KVM_EXIT } from '../../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_routing, kvm_irq_routing_entry } from '../../../../../../server/kernel/uapi/irq-structs.js';
import { kvm_run__eoi, kvm_run__io } from '../../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_enable_cap, kvm_irqfd, kvm_userspace_memory_region } from '../../../../../../server/kernel/uapi/kvm-structs.js';
import { kvm_cpuid_entry2, kvm_cpuid2, kvm_regs, kvm_sregs } from '../../../../../../server/kernel/uapi/x86-structs.js';
import { trackHost } from '../../../../../helpers/leftovers.js';
import { TestProcess } from '../../test-host.js';

/** Where things lie in the guest's 64 KiB: code, handlers (16 bytes each from vector 0x20 on), tables, stack. */
export const CODE = 0x1000;
const IDT = 0x3000;
const GDT = 0x4000;
const STACK = 0x8000;
const MEMORY = 0x10000;

const SLOT_FIELDS = { slot: 0, flags: 0, guest_phys_addr: 0n, memory_size: BigInt(MEMORY) };
const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, db: 1, s: 1, l: 0, g: 1, avl: 0, unusable: 0, padding: 0 };

/** What KVM_RUN came back with: the port it stopped at, or what else. */
export type Outcome =
  | { readonly port: number }
  | { readonly eoi: number }
  | { readonly errno: string }
  | { readonly exit: number };

/** A guest in flat 32-bit protected mode on a host whose clock the test moves. */
export class GuestBench {
  readonly process: TestProcess;
  readonly vmFd: number;
  private time = 0n;
  private readonly memory: number;

  constructor(irqchip: 'kernel' | 'split' = 'kernel') {
    const kernel = trackHost(createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => this.time } }));
    this.process = new TestProcess(kernel, kernel.spawn(null));
    const { mm } = this.process.process;
    const protection = { read: true, write: true, execute: false };
    const memory = mm?.mmap({ length: MEMORY, protection, shared: false, object: null, offset: 0 });
    if (memory === undefined || failed(memory)) throw new Error('no memory');
    this.memory = memory;
    const { fd } = this.process.createVm();
    this.vmFd = fd;
    if (irqchip === 'kernel') this.vm(IOCTL.KVM_CREATE_IRQCHIP);
    else this.vm(IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode({ cap: KVM_CAP.SPLIT_IRQCHIP, args: [24n] }));
    this.vm(
      IOCTL.KVM_SET_USER_MEMORY_REGION,
      kvm_userspace_memory_region.encode({ ...SLOT_FIELDS, userspace_addr: BigInt(memory) }),
    );
    this.write(GDT, '0000000000000000' + 'ffff0000009bcf00' + 'ffff00000093cf00');
  }

  /** A VM ioctl that must succeed. */
  vm(request: number, arg: number | Uint8Array = 0): number {
    return this.process.must(this.process.ioctl(this.vmFd, request, arg));
  }

  /** Bytes in hex, into the guest's memory. */
  write(address: number, hex: string): void {
    const refused = this.process.process.mm?.write(this.memory + address, Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));
    if (refused) throw new Error(refused.reason);
  }

  /** A handler for a vector, by its interrupt gate. */
  handler(vector: number, address: number, hex: string): void {
    this.write(address, hex);
    const gate = new Uint8Array(8);
    const view = new DataView(gate.buffer);
    view.setUint16(0, address & 0xffff, true);
    view.setUint16(2, 8, true);
    view.setUint16(4, 0x8e00, true);
    this.write(IDT + 8 * vector, Buffer.from(gate).toString('hex'));
  }

  /** A vCPU at CODE. */
  createVcpu(id = 0, rip = CODE): { readonly fd: number; readonly vcpu: Vcpu } {
    const made = this.process.createVcpu(this.vmFd, id);
    const sregs = new Uint8Array(kvm_sregs.size);
    this.process.must(this.process.ioctl(made.fd, IOCTL.KVM_GET_SREGS, sregs));
    const code = { ...FLAT, selector: 8, type: 11 };
    const data = { ...FLAT, selector: 16, type: 3 };
    const { cr0 } = kvm_sregs.decode(sregs);
    kvm_sregs.write(sregs, {
      ...{ cs: code, ds: data, es: data, fs: data, gs: data, ss: data, cr0: cr0 | 1n },
      ...{ gdt: { base: BigInt(GDT), limit: 23 }, idt: { base: BigInt(IDT), limit: 0x7ff } },
    });
    this.process.must(this.process.ioctl(made.fd, IOCTL.KVM_SET_SREGS, sregs));
    const regs = kvm_regs.encode({ rip: BigInt(rip), rflags: 2n, rsp: BigInt(STACK) });
    this.process.must(this.process.ioctl(made.fd, IOCTL.KVM_SET_REGS, regs));
    return made;
  }

  /** KVM_SET_CPUID2 with one leaf: features of leaf 1, ECX. */
  setCpuid(vcpuFd: number, ecx: number): void {
    const entry = kvm_cpuid_entry2.encode({ function: 1, ecx });
    const bytes = new Uint8Array(kvm_cpuid2.size + entry.length);
    bytes.set(kvm_cpuid2.encode({ nent: 1 }));
    bytes.set(entry, kvm_cpuid2.size);
    this.process.must(this.process.ioctl(vcpuFd, IOCTL.KVM_SET_CPUID2, bytes));
  }

  /** KVM_SET_GSI_ROUTING. */
  route(...entries: Uint8Array[]): void {
    const bytes = new Uint8Array(kvm_irq_routing.size + entries.length * kvm_irq_routing_entry.size);
    bytes.set(kvm_irq_routing.encode({ nr: entries.length }));
    for (const [index, entry] of entries.entries()) bytes.set(entry, kvm_irq_routing.size + index * kvm_irq_routing_entry.size);
    this.vm(IOCTL.KVM_SET_GSI_ROUTING, bytes);
  }

  eventfd(): { readonly counter: EventFd; readonly fd: number } {
    const counter = new EventFd(0n, false);
    return { counter, fd: this.process.must(this.process.process.files.install(new File(counter, OPEN.RDWR), true)) };
  }

  irqfd(args: Parameters<typeof kvm_irqfd.encode>[0]): void {
    this.vm(IOCTL.KVM_IRQFD, kvm_irqfd.encode(args));
  }

  /** KVM_RUN that may wait: undefined as long as it does. */
  start(vcpu: { readonly fd: number; readonly vcpu: Vcpu }): () => Outcome | undefined {
    const started = this.process.startIoctl(vcpu.fd, IOCTL.KVM_RUN);
    return () => {
      const result = started.result();
      return result === undefined ? undefined : outcome(result, vcpu.vcpu);
    };
  }

  /** KVM_RUN that comes to its end. */
  run(vcpu: { readonly fd: number; readonly vcpu: Vcpu }): Outcome {
    const found = this.start(vcpu)();
    if (found === undefined) throw new Error('KVM_RUN waits');
    return found;
  }

  /** Lets time pass, timers fire, and whoever was woken run. */
  advance(nanoseconds: bigint): void {
    this.time += nanoseconds;
    this.process.kernel.timers.advance(this.time);
    this.settle();
  }

  /** Lets everybody run who can. */
  settle(): void {
    while (this.process.kernel.scheduler.run());
  }
}

const outcome = (result: Result<number>, { arch }: Vcpu): Outcome => {
  if (failed(result)) return { errno: result.errno };
  const { exitReason } = arch.run;
  if (exitReason === KVM_EXIT.IO) return { port: arch.run.read(kvm_run__io).port };
  return exitReason === KVM_EXIT.IOAPIC_EOI ? { eoi: arch.run.read(kvm_run__eoi).vector } : { exit: exitReason };
};
