import {
  EFD,
  type EventFd,
  KvmIoeventfdFlag,
  type KvmIoeventfdInit,
  KvmIrqchipId,
  KvmIrqfdFlag,
  type KvmIrqfdInit,
  type KvmIrqRoutingEntryInit,
  KvmIrqRoutingType,
  type Outcome,
  type Process,
  type Vm,
} from '../../index.js';
import { LAPIC, NVME, QUEUES } from '../guest/layout.js';

const DOORBELL_BYTES = 4;
const PORT_BYTES = 1;

/** Where the guest rings, and the eventfd that hears it. */
interface Bell {
  readonly name: string;
  readonly eventfd: EventFd;
  readonly where: Omit<KvmIoeventfdInit, 'fd'>;
}

/** Routes of the queues' interrupts: pins of the PIC, or messages to a local APIC. */
export const irqRoutes = (): KvmIrqRoutingEntryInit[] =>
  QUEUES.map(({ interrupt, vcpu }) =>
    interrupt.kind === 'pic'
      ? {
          gsi: interrupt.gsi,
          type: KvmIrqRoutingType.KVM_IRQ_ROUTING_IRQCHIP,
          irqchip: { irqchip: KvmIrqchipId.KVM_IRQCHIP_PIC_MASTER, pin: interrupt.pin },
        }
      : {
          gsi: interrupt.gsi,
          type: KvmIrqRoutingType.KVM_IRQ_ROUTING_MSI,
          msi: { address_lo: LAPIC.BASE | (vcpu << 12), data: interrupt.vector },
        },
  );

/** The part of an NVMe-like controller that is in the VMM: its doorbells (ioeventfds) and its completions (irqfds). */
export class NvmeDevice {
  private constructor(
    private readonly bells: readonly Bell[],
    /** Signalled when a queue's command completes; by the number of the queue. */
    readonly completions: readonly EventFd[],
  ) {}

  /** @param completions eventfds that the device signals; left out: new ones */
  static async create(process: Process, completions?: readonly EventFd[]): Promise<NvmeDevice> {
    const bell = async (name: string, where: Omit<KvmIoeventfdInit, 'fd'>): Promise<Bell> => ({
      name,
      eventfd: await process.eventfd(0, EFD.NONBLOCK),
      where,
    });
    const bells = [
      await bell('notify port', { addr: NVME.NOTIFY_PORT, len: PORT_BYTES, flags: KvmIoeventfdFlag.KVM_IOEVENTFD_FLAG_PIO }),
    ];
    for (const { name, doorbell } of QUEUES) bells.push(await bell(`${name} doorbell`, { addr: doorbell, len: DOORBELL_BYTES }));
    return new NvmeDevice(bells, completions ?? (await newCompletions(process)));
  }

  /** KVM_IOEVENTFD for every doorbell. */
  async assignDoorbells(vm: Vm): Promise<void> {
    for (const { where, eventfd } of this.bells) await vm.ioeventfd({ ...where, fd: eventfd.fd });
  }

  /** KVM_IRQFD for a queue's completions. */
  assignCompletion(vm: Vm, queue: number): Promise<Outcome<number>> {
    return vm.try.irqfd(this.irqfd(queue, 0));
  }

  /** A command of the queue is complete. */
  async complete(queue: number): Promise<void> {
    await this.completions[queue]?.write(1);
  }

  /** How often each bell has been rung since it was asked last, by its name. */
  async rung(): Promise<Readonly<Record<string, number>>> {
    const counts: Record<string, number> = {};
    for (const { name, eventfd } of this.bells) {
      const { errno, value } = await eventfd.try.read();
      counts[name] = errno === null ? Number(value) : 0;
    }
    return counts;
  }

  /** What unplugging it takes, call by call, on the VM that it is given. */
  unplug(): readonly { readonly name: string; readonly call: (vm: Vm) => Promise<Outcome<number>> }[] {
    const deassign = KvmIoeventfdFlag.KVM_IOEVENTFD_FLAG_DEASSIGN;
    return [
      ...this.bells.map(({ name, where, eventfd }) => ({
        name: `KVM_IOEVENTFD deassign (${name})`,
        call: (vm: Vm) => vm.try.ioeventfd({ ...where, fd: eventfd.fd, flags: (where.flags ?? 0) | deassign }),
      })),
      ...QUEUES.map(({ name }, queue) => ({
        name: `KVM_IRQFD deassign (${name})`,
        call: (vm: Vm) => this.deassignCompletion(vm, queue),
      })),
    ];
  }

  deassignCompletion(vm: Vm, queue: number): Promise<Outcome<number>> {
    return vm.try.irqfd(this.irqfd(queue, KvmIrqfdFlag.KVM_IRQFD_FLAG_DEASSIGN));
  }

  private irqfd(queue: number, flags: number): KvmIrqfdInit {
    const [completion, definition] = [this.completions[queue], QUEUES[queue]];
    if (completion === undefined || definition === undefined) throw new RangeError(`the controller has no queue ${queue}`);
    return { fd: completion.fd, gsi: definition.interrupt.gsi, flags };
  }
}

/** One eventfd for each queue's completions. */
export const newCompletions = async (process: Process): Promise<EventFd[]> => {
  const completions: EventFd[] = [];
  for (const _queue of QUEUES) completions.push(await process.eventfd(0, EFD.NONBLOCK));
  return completions;
};
