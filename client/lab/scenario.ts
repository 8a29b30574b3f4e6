import {
  type Errno,
  EventFd,
  File,
  KvmError,
  type MovePhase,
  moveContext,
  type PostMovePolicyName,
  type SimKvm,
  Vm,
} from '../index.js';
import { QUEUES, SERIAL } from './guest/layout.js';
import { type CarriedState, restoreState, saveState } from './vmm/carried-state.js';
import { type Launch, launch } from './vmm/launch.js';
import { NvmeDevice, newCompletions } from './vmm/nvme-device.js';
import { waitForGuest } from './vmm/vcpu-thread.js';
import { type MachineOptions, Vmm } from './vmm/vmm.js';

/** When the source gives its irqfds back, and which eventfds the destination uses. */
export const IRQFD_ORDERS = ['fresh-eventfds', 'source-deassigns-first', 'source-never-deassigns'] as const;
export type IrqfdOrder = (typeof IRQFD_ORDERS)[number];

export interface ScenarioOptions extends MachineOptions {
  readonly irqfdOrder: IrqfdOrder;
}

/** A call that did not succeed, on the way of a VMM that goes on all the same. */
export interface FailedCall {
  readonly call: string;
  readonly errno: Errno;
}

/** How a move went. */
export interface Move {
  /** Null: it succeeded. */
  readonly errno: Errno | null;
  readonly phases: readonly MovePhase[];
}

/** What became of a queue's completions. */
export interface QueueReport {
  readonly queue: string;
  /** Commands that the device has completed. */
  readonly signalled: number;
  /** Interrupts that the guest says it has had, by its serial port. */
  readonly delivered: number;
}

/** Where the two VMMs map the guest's memory: not at the same address. */
const HINT = { source: 0x7e00_0000_0000n, destination: 0x7a00_0000_0000n } as const;

/**
 * Two VMM processes and one encrypted guest with an NVMe-like device: launched, run, moved from the first to the second, and
 * run there. Each step is a method, so that a probe may leave off anywhere.
 */
export class Scenario implements AsyncDisposable {
  destination: Vmm | null = null;
  readonly failedCalls: FailedCall[] = [];
  /** The device as the destination's VMM has it. */
  private remote: NvmeDevice | null = null;
  private state: CarriedState | null = null;
  /** A destination that the guest has left again. */
  private former: Vmm | null = null;
  private signalled = 0;
  private readonly unassigned = new Set<number>();

  private constructor(
    private readonly simkvm: SimKvm,
    readonly options: ScenarioOptions,
    readonly source: Vmm,
    readonly device: NvmeDevice,
    readonly launched: Launch,
    /** Number of the source VM. */
    readonly sourceId: number,
  ) {}

  /** A guest, launched and measured; a built-in one runs and has rung its doorbells. */
  static async start(simkvm: SimKvm, options: ScenarioOptions): Promise<Scenario> {
    const source = await Vmm.create(simkvm, 'source', options, {
      hint: HINT.source,
      initialize: (vm) => initialize(vm, options),
    });
    const device = await NvmeDevice.create(source.process);
    await device.assignDoorbells(source.vm);
    for (const queue of QUEUES.keys()) await device.assignCompletion(source.vm, queue);
    const launched = await launch(source, options.encryption, options.image);
    const { vm_id } = await source.vm.inspect();
    const scenario = new Scenario(simkvm, options, source, device, launched, vm_id);
    if (options.image.runs) {
      source.start();
      await waitForGuest(source.vm, source.threads, () => source.threads.every(({ serial }) => serial.includes(SERIAL.READY)));
    }
    return scenario;
  }

  /** The device completes one command of each queue; resolves when the guest has had them, or will not have them. */
  async complete(): Promise<void> {
    await this.signal();
    await this.settle();
  }

  /** The device completes one command of each queue. */
  async signal(): Promise<void> {
    this.signalled++;
    for (const queue of QUEUES.keys()) await (this.remote ?? this.device).complete(queue);
  }

  /** Waits until the guest has had every completion, or waits for what does not come. */
  async settle(): Promise<void> {
    const { vm, threads } = this.destination ?? this.source;
    await waitForGuest(vm, threads, () => this.queues().every(({ signalled, delivered }) => delivered >= signalled));
  }

  /** A VMM that waits for the guest: same machine, same memory, no encryption context. */
  async createDestination(): Promise<Vmm> {
    const { source, simkvm, options } = this;
    this.destination = await Vmm.create(simkvm, 'destination', options, {
      hint: HINT.destination,
      file: async (process) => {
        const { file } = source.memory;
        return file === null ? null : process.adopt(File, await source.process.sendFd(file, process));
      },
    });
    return this.destination;
  }

  /**
   * Stops the guest, and reads what the move will leave behind. A device that is to be switched over to fresh eventfds has
   * one last completion of each queue for the source: it waits in the interrupt controllers, and travels with their state.
   * @param quiet the device has none
   */
  async pause({ quiet = false } = {}): Promise<void> {
    const { source, options, device } = this;
    if (options.image.runs) await source.stop();
    if (options.image.runs && options.irqfdOrder === 'fresh-eventfds' && !quiet) await this.signal();
    if (options.irqfdOrder === 'source-deassigns-first')
      for (const queue of QUEUES.keys()) await device.deassignCompletion(source.vm, queue);
    this.state = await saveState(source, options.encryption);
  }

  /** The source VM's descriptor in the destination's process. */
  async sendSource(destination: Vmm): Promise<Vm> {
    return destination.process.adopt(Vm, await this.source.process.sendFd(this.source.vm, destination.process));
  }

  /** The destination's process moves the context, under a policy of the source. */
  async move(policy: PostMovePolicyName): Promise<Move> {
    const destination = this.requireDestination();
    await this.source.vm.setPostMovePolicy(policy);
    const source = await this.sendSource(destination);
    const phases: MovePhase[] = [];
    try {
      for await (const phase of moveContext(destination.vm, source)) phases.push(phase);
      return { errno: null, phases };
    } catch (error) {
      const { errno } = KvmError.from(error);
      if (errno === null) throw error;
      return { errno, phases };
    } finally {
      await source.close();
    }
  }

  /**
   * The destination gets what the move has left behind and the device, and the guest goes on. Where both VMMs use the same
   * eventfds, one command of each queue completes before the destination has them.
   */
  async resume(): Promise<void> {
    const destination = this.requireDestination();
    const { source, options, state } = this;
    if (state !== null) await restoreState(destination, state);
    const completions =
      options.irqfdOrder === 'fresh-eventfds'
        ? await newCompletions(destination.process)
        : await this.sendCompletions(destination);
    this.remote = await NvmeDevice.create(destination.process, completions);
    await this.remote.assignDoorbells(destination.vm);
    if (!options.image.runs) return;
    if (options.irqfdOrder !== 'fresh-eventfds') await this.signal();
    for (const queue of QUEUES.keys()) this.unassigned.add(queue);
    await this.assignCompletions();
    for (const [id, thread] of destination.threads.entries()) thread.continueFrom(source.threads[id]);
    destination.start();
    await this.settle();
  }

  /** KVM_IRQFD on the destination for every queue that has none yet: an eventfd may still belong to the source. */
  async assignCompletions(): Promise<void> {
    const { vm } = this.requireDestination();
    for (const queue of [...this.unassigned]) {
      const { errno } = (await this.remote?.assignCompletion(vm, queue)) ?? { errno: null };
      if (errno === null) this.unassigned.delete(queue);
      else this.failedCalls.push({ call: `destination: KVM_IRQFD (${QUEUES[queue]?.name})`, errno });
    }
  }

  /** The context has gone back: the source's VMM runs the guest again, with its own device. */
  returnToSource(): void {
    const { source, destination } = this;
    for (const [id, thread] of source.threads.entries()) thread.continueFrom(destination?.threads[id]);
    this.former = destination;
    this.destination = null;
    this.remote = null;
    source.start();
  }

  /** How often each doorbell has been rung at the destination since it was asked last. */
  async rungAtDestination(): Promise<Readonly<Record<string, number>>> {
    return (await this.remote?.rung()) ?? {};
  }

  queues(): QueueReport[] {
    const { destination, source } = this;
    const threads = destination?.threads.some(({ serial }) => serial !== '') ? destination.threads : source.threads;
    return QUEUES.map(({ name, vcpu }, index) => ({
      queue: name,
      signalled: this.signalled,
      delivered: (threads[vcpu]?.serial ?? '').split(SERIAL.letter(index)).length - 1,
    }));
  }

  /** Ends whatever still is there. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.source.stop();
    await this.destination?.stop();
    await this.former?.process[Symbol.asyncDispose]();
    await this.source.process[Symbol.asyncDispose]();
    await this.destination?.process[Symbol.asyncDispose]();
  }

  private async sendCompletions(destination: Vmm): Promise<EventFd[]> {
    const sent: EventFd[] = [];
    for (const completion of this.device.completions)
      sent.push(destination.process.adopt(EventFd, await this.source.process.sendFd(completion, destination.process)));
    return sent;
  }

  private requireDestination(): Vmm {
    if (this.destination === null) throw new Error('there is no destination yet');
    return this.destination;
  }
}

const initialize = (vm: Vm, { encryption, vmType }: ScenarioOptions): Promise<number> => {
  if (vmType === 'SEV') return vm.sev.init2({ vmsa_features: 0n });
  return encryption === 'SEV' ? vm.sev.init() : vm.sev.esInit();
};
