import { KmemOwner } from '../../../../../../server/kernel/kmem.js';
import { REQUEST } from '../../../../../../server/kernel/kvm/vcpu.js';
import { APIC } from '../../../../../../server/kernel/kvm/x86/irq/apic-registers.js';
import { Lapic } from '../../../../../../server/kernel/kvm/x86/irq/lapic.js';
import { lapicMmioWrite } from '../../../../../../server/kernel/kvm/x86/irq/lapic-access.js';
import { lapicReset } from '../../../../../../server/kernel/kvm/x86/irq/lapic-state.js';
import { VmIrq } from '../../../../../../server/kernel/kvm/x86/irq/vm-irq.js';
import { TimerQueue } from '../../../../../../server/kernel/timer.js';

/** A vCPU as far as interrupts go: its local APIC, what was requested of it, and how often it was kicked. */
export interface TestVcpu {
  readonly apic: Lapic;
  requests: number;
  kicks: number;
  nmis: number;
  tprReports: number;
  /** Nanoseconds are TSC cycles: 1 GHz. */
  readonly tscKhz: number;
}

export interface TestSettings {
  irqchipMode: 'none' | 'kernel' | 'split';
  bspVcpuId: number;
  x2apicFormat: boolean;
  x2apicBroadcastQuirkDisabled: boolean;
  apicBusCycleNs: number;
  quirkEnabled(quirk: number): boolean;
}

/** A VM's interrupt controllers alone, over a clock that the test sets. */
export class IrqBench {
  readonly timers = new TimerQueue();
  readonly kmem = new KmemOwner('vm 1');
  readonly vcpus: TestVcpu[] = [];
  readonly settings: TestSettings = {
    irqchipMode: 'kernel',
    bspVcpuId: 0,
    x2apicFormat: false,
    x2apicBroadcastQuirkDisabled: false,
    apicBusCycleNs: 1,
    quirkEnabled: () => true,
  };
  readonly irq: VmIrq;
  cpuidX2apic = false;
  private time = 0n;

  constructor(x2apicIcrIsSplit = true) {
    const bench = this;
    this.irq = new VmIrq(this.settings, {
      clock: { now: () => this.time },
      timers: this.timers,
      kmem: this.kmem,
      x2apicIcrIsSplit,
      *lapics() {
        for (const vcpu of bench.vcpus) yield vcpu.apic;
      },
    });
  }

  get now(): bigint {
    return this.time;
  }

  /** Lets time pass, and what is due happen. */
  advance(nanoseconds: bigint): void {
    this.time += nanoseconds;
    this.timers.advance(this.time);
  }

  /** A vCPU after KVM_CREATE_VCPU: reset before it is online, as in the kernel. */
  createVcpu(id: number = this.vcpus.length): TestVcpu {
    const bench = this;
    const vcpu: TestVcpu = {
      requests: 0,
      kicks: 0,
      nmis: 0,
      tprReports: 0,
      tscKhz: 1_000_000,
      apic: new Lapic(this.irq, {
        id,
        request: (bit) => {
          vcpu.requests |= bit;
        },
        kick: () => {
          vcpu.kicks++;
        },
        injectNmi: () => {
          vcpu.nmis++;
        },
        reportTprAccess: () => {
          vcpu.tprReports++;
        },
        get cpuidX2apic() {
          return bench.cpuidX2apic;
        },
        get guestTsc() {
          return bench.now;
        },
        tscKhz: 1_000_000,
      }),
    };
    vcpu.apic.setBase(id === this.settings.bspVcpuId ? 0xfee0_0900n : 0xfee0_0800n);
    lapicReset(vcpu.apic, false);
    this.vcpus.push(vcpu);
    return vcpu;
  }

  /** The same with its APIC enabled by software. */
  createEnabledVcpu(id?: number): TestVcpu {
    const vcpu = this.createVcpu(id);
    writeApic(vcpu.apic, APIC.SPIV, 0x1ff);
    return vcpu;
  }
}

export const word = (value: number): Uint8Array => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return bytes;
};

/** A guest's write to its APIC page. */
export const writeApic = (apic: Lapic, offset: number, value: number): void => {
  lapicMmioWrite(apic, 0xfee0_0000 + offset, word(value));
};

/** True if the vCPU was asked for `name` since it was last looked at. */
export const takeRequest = (vcpu: TestVcpu, name: keyof typeof REQUEST): boolean => {
  const bit = REQUEST[name];
  const found = (vcpu.requests & bit) !== 0;
  vcpu.requests &= ~bit;
  return found;
};

/** What the run loop does when it enters: takes the interrupt that may be taken, -1 if there is none. */
export const takeInterrupt = ({ apic }: TestVcpu): number => {
  const vector = apic.hasInterrupt();
  if (vector !== -1) apic.ackInterrupt(vector);
  return vector;
};

/** KVM_REQ_SCAN_IOAPIC, as the run loop handles it before the next entry. */
export const scan = (bench: IrqBench): void => {
  for (const { apic } of bench.vcpus) {
    apic.ioapicHandledVectors.fill(0);
    bench.irq.chips?.ioapic.scan(apic);
  }
};
