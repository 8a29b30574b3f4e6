import type { Errno, Process, Vcpu, VcpuExit, Vm } from '../../index.js';
import { KvmMpStateValue } from '../../index.js';
import { SERIAL_PORT } from '../guest/layout.js';

/** The signal that VMMs use to get a vCPU out of KVM_RUN. */
const SIGUSR1 = 10;
const POLL_MS = 2;
/** In a row, with nothing new from the guest: then it waits for an interrupt that does not come. */
const IDLE_POLLS = 3;
const PATIENCE_MS = 10_000;

/** Why a vCPU's thread has ended. */
export type ThreadEnd =
  | { readonly kind: 'stopped' }
  | { readonly kind: 'errno'; readonly errno: Errno }
  | { readonly kind: 'exit'; readonly reason: string };

const sleep = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A VMM's thread for one vCPU: KVM_RUN again and again, and the serial port. */
export class VcpuThread {
  private stopping = false;
  private running: Promise<void> | null = null;
  private text = '';
  private over: ThreadEnd | null = null;

  constructor(
    private readonly process: Process,
    readonly vcpu: Vcpu,
    private readonly tid: number,
  ) {}

  /** What the guest has said on the serial port of this vCPU. */
  get serial(): string {
    return this.text;
  }

  /** Null while it runs, or has not been started. */
  get end(): ThreadEnd | null {
    return this.over;
  }

  /** The guest comes from another VMM: what it has said there comes first. */
  continueFrom(other: VcpuThread | undefined): void {
    this.text = other?.text ?? '';
  }

  start(): void {
    this.stopping = false;
    this.over = null;
    this.running = this.loop();
  }

  /**
   * Gets the vCPU out of the guest, and completes what its last exit has begun: a result that is still to be delivered does
   * not move with the guest.
   */
  async stop(): Promise<void> {
    this.stopping = true;
    while (this.over === null && this.running !== null) {
      await this.process.try.signal(SIGUSR1, { tid: this.tid });
      await Promise.race([this.running, sleep(POLL_MS)]);
    }
    await this.running;
    if (this.over?.kind === 'stopped') await this.vcpu.try.run({ immediate_exit: 1 });
  }

  private async loop(): Promise<void> {
    const vcpu = this.vcpu.with({ thread: this.tid });
    while (this.over === null) {
      // A member of the shared page keeps its value: what `stop` has set has to be taken back.
      const { errno, value } = await vcpu.try.run({ immediate_exit: 0 });
      if (errno === 'EINTR') {
        if (this.stopping) this.over = { kind: 'stopped' };
      } else if (errno !== null) this.over = { kind: 'errno', errno };
      else this.handle(value);
    }
  }

  private handle(exit: VcpuExit): void {
    if (exit.reason === 'KVM_EXIT_IO' && exit.io.port === SERIAL_PORT) this.text += Buffer.from(exit.io.data).toString('latin1');
    else this.over = { kind: 'exit', reason: exit.reason };
    if (this.stopping) this.over ??= { kind: 'stopped' };
  }
}

/** Whether no vCPU will do anything before the next interrupt: halted in KVM_RUN, or its thread is over. */
const isIdle = async (vm: Vm, threads: readonly VcpuThread[]): Promise<boolean> => {
  const { errno, value } = await vm.try.inspect();
  if (errno !== null) return true;
  return value.vcpus.every(
    ({ vcpu_id, mp_state, in_run }) =>
      threads[vcpu_id]?.end !== null || (in_run && mp_state === KvmMpStateValue.KVM_MP_STATE_HALTED),
  );
};

/**
 * Waits until `done`, or until the guest waits for something that does not come; whether it is done.
 * @param vm the VM in which it runs
 */
export const waitForGuest = async (vm: Vm, threads: readonly VcpuThread[], done: () => boolean): Promise<boolean> => {
  const giveUp = performance.now() + PATIENCE_MS;
  for (let idle = 0; performance.now() < giveUp; ) {
    if (done()) return true;
    idle = (await isIdle(vm, threads)) ? idle + 1 : 0;
    if (idle >= IDLE_POLLS) return done();
    if (!done()) await sleep(POLL_MS);
  }
  return done();
};
