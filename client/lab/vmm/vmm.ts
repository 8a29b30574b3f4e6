import { type File, type Kvm, KvmX86VmType, type Process, type SimKvm, type Vcpu, type Vm } from '../../index.js';
import type { GuestImage } from '../guest/image.js';
import { type Backing, GuestMemory } from './guest-memory.js';
import { irqRoutes } from './nvme-device.js';
import { VcpuThread } from './vcpu-thread.js';

/** How a guest is encrypted. */
export type Encryption = 'SEV' | 'SEV-ES';

/** What both VMMs of an experiment agree on. */
export interface MachineOptions {
  readonly encryption: Encryption;
  /** KVM_X86_DEFAULT_VM, or a VM of the type that the encryption has since Linux 6.10. */
  readonly vmType: 'DEFAULT' | 'SEV';
  readonly memoryBytes: number;
  readonly backing: Backing;
  readonly image: GuestImage;
}

const VCPUS = 2;
/** Thread ids of the vCPUs, in each process. */
const FIRST_TID = 1000;

const typeOf = ({ vmType, encryption }: MachineOptions): number => {
  if (vmType === 'DEFAULT') return KvmX86VmType.KVM_X86_DEFAULT_VM;
  return encryption === 'SEV' ? KvmX86VmType.KVM_X86_SEV_VM : KvmX86VmType.KVM_X86_SEV_ES_VM;
};

/** A VMM process with one VM: memory slots, in-kernel interrupt controllers and two vCPUs. */
export class Vmm {
  private constructor(
    readonly process: Process,
    readonly kvm: Kvm,
    readonly vm: Vm,
    readonly memory: GuestMemory,
    readonly vcpus: readonly Vcpu[],
    readonly threads: readonly VcpuThread[],
  ) {}

  /**
   * @param hint where to map the guest's memory
   * @param file the guest's memory, sent by another VMM
   * @param initialize makes the VM an encrypted guest; left out for a destination, which becomes one by the move
   */
  static async create(
    simkvm: SimKvm,
    name: string,
    options: MachineOptions,
    {
      hint,
      file,
      initialize,
    }: { hint: bigint; file?: (process: Process) => Promise<File | null>; initialize?: (vm: Vm) => Promise<unknown> },
  ): Promise<Vmm> {
    const process = await simkvm.attach({ name });
    const kvm = await process.openKvm();
    const vm = await kvm.createVm(typeOf(options));
    await vm.createIrqchip();
    await vm.setGsiRouting({ entries: irqRoutes() });
    await initialize?.(vm);
    const { memoryBytes: bytes, backing, image } = options;
    const memory = await GuestMemory.map(process, backing, {
      ...{ bytes, hint, firmware: image.firmware, file: (await file?.(process)) ?? null },
    });
    await memory.addSlots(vm);
    const cpuid = await kvm.getSupportedCpuid();
    const vcpus: Vcpu[] = [];
    for (let id = 0; id < VCPUS; id++) {
      const vcpu = await vm.createVcpu(id);
      await vcpu.setCpuid2(cpuid);
      vcpus.push(vcpu);
    }
    const threads = vcpus.map((vcpu, id) => new VcpuThread(process, vcpu, FIRST_TID + id));
    return new Vmm(process, kvm, vm, memory, vcpus, threads);
  }

  /** vCPU 0. */
  get bootVcpu(): Vcpu {
    const [vcpu] = this.vcpus;
    if (vcpu === undefined) throw new Error('a VMM of the lab has vCPUs');
    return vcpu;
  }

  start(): void {
    for (const thread of this.threads) thread.start();
  }

  /** Gets every vCPU out of the guest, with no exit left half done. */
  async stop(): Promise<void> {
    await Promise.all(this.threads.map((thread) => thread.stop()));
  }

  /** Closes vCPUs and VM, one after the other, and the process exits. */
  async close(): Promise<void> {
    for (const vcpu of this.vcpus) await vcpu.close();
    await this.vm.close();
    await this.process.exit();
  }
}
