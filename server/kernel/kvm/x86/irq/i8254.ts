import type { Clock } from '../../../clock.js';
import { KernelTimer, type TimerQueue } from '../../../timer.js';
import { KVM_PIT_FLAGS } from '../../../uapi/constants.js';
import { kvm_pit_channel_state, kvm_pit_state, kvm_pit_state2 } from '../../../uapi/irq-structs.js';
import type { StructValue } from '../../../uapi/struct.js';
import type { IrqAckNotifier, IrqMaskNotifier, IrqNotifiers } from './irq-notifiers.js';
import { MIN_TIMER_PERIOD_NS } from './lapic-timer.js';
import { pitCount, pitOutput } from './pit-channel.js';

export const KVM_PIT_BASE_ADDRESS = 0x40;
export const KVM_PIT_MEM_LENGTH = 4;
export const KVM_SPEAKER_BASE_ADDRESS = 0x61;
const CHANNELS = 3;
const NSEC_PER_SEC = 1_000_000_000n;
/** Hz of the counters' clock. */
const KVM_PIT_FREQ = 1_193_182n;
/** Mode that the chip has before it is programmed. */
const MODE_NONE = 0xff;
/** `rw_mode`, `read_state`, `write_state`: which byte of the count is next. */
const RW = { LSB: 1, MSB: 2, WORD0: 3, WORD1: 4 } as const;
/** GSI of channel 0. */
export const PIT_GSI = 0;

type Channel = StructValue<typeof kvm_pit_channel_state>;

export interface PitHost {
  readonly clock: Clock;
  readonly timers: TimerQueue;
  readonly notifiers: IrqNotifiers;
  /** Pulses GSI 0, and reaches the vCPUs whose LVT0 is in NMI mode. */
  tick(): void;
}

/**
 * `struct kvm_pit`: the 8254 interval timer (arch/x86/kvm/i8254.c). Channel 0 ticks on GSI 0; with reinjection, ticks that
 * the guest has not acknowledged yet are kept and delivered one after the other.
 */
export class I8254 {
  private channels: Channel[] = Array.from({ length: CHANNELS }, () =>
    kvm_pit_channel_state.decode(new Uint8Array(kvm_pit_channel_state.size)),
  );
  private flags = 0;
  /** KVM_PIT_SPEAKER_DUMMY: port 0x61 is its own too. */
  speaker = false;
  /** Of channel 0, nanoseconds; 0: never loaded. */
  private period = 0n;
  private periodic = false;
  private expires = 0n;
  private reinject = false;
  /** Ticks that have not been delivered. */
  private pending = 0n;
  /** The last tick was acknowledged. */
  private irqAck = false;
  private readonly timer: KernelTimer;
  private readonly ackNotifier: IrqAckNotifier = { irqAcked: () => this.acked() };
  private readonly maskNotifier: IrqMaskNotifier = {
    masked: (mask) => {
      if (!mask) this.resetReinject();
    },
  };

  constructor(private readonly host: PitHost) {
    this.timer = new KernelTimer(host.timers, (now) => this.expired(now));
    this.reset();
    this.setReinject(true);
  }

  /** `kvm_pit_reset`. */
  private reset(): void {
    this.channels.forEach((channel, index) => {
      channel.mode = MODE_NONE;
      channel.gate = index === 2 ? 0 : 1;
      this.load(index, 0);
    });
    this.resetReinject();
  }

  /** Ticks that the guest has not acknowledged are delivered later. */
  get reinjects(): boolean {
    return this.reinject;
  }

  /** `kvm_pit_set_reinject` (KVM_REINJECT_CONTROL). */
  setReinject(reinject: boolean): void {
    if (reinject === this.reinject) return;
    const { notifiers } = this.host;
    if (reinject) {
      this.resetReinject();
      notifiers.registerAck(PIT_GSI, this.ackNotifier, 'device');
      notifiers.registerMask(PIT_GSI, this.maskNotifier);
    } else {
      notifiers.unregisterAck(this.ackNotifier);
      notifiers.unregisterMask(this.maskNotifier);
    }
    this.reinject = reinject;
  }

  private resetReinject(): void {
    this.pending = 0n;
    this.irqAck = true;
  }

  /** `kvm_pit_ack_irq`: the guest is done with a tick; the next one that waits follows. */
  private acked(): void {
    this.irqAck = true;
    if (this.pending === 0n) return;
    this.pending--;
    if (this.pending > 0n) this.deliver();
  }

  /** `pit_do_work`. */
  private deliver(): void {
    if (this.reinject) {
      if (!this.irqAck) return;
      this.irqAck = false;
    }
    this.host.tick();
  }

  /** `pit_timer_fn`, with every period that has passed since at once. */
  private expired(now: bigint): bigint | null {
    const ticks = this.periodic ? 1n + (now - this.expires) / this.period : 1n;
    if (this.reinject) this.pending += ticks;
    this.deliver();
    if (!this.periodic) return null;
    this.expires += ticks * this.period;
    return this.expires;
  }

  /** `pit_load_count`. */
  private load(index: number, count: number): void {
    const channel = this.channels[index];
    if (channel === undefined) return;
    channel.count = count === 0 ? 0x10000 : count;
    if (index !== 0) {
      channel.count_load_time = this.host.clock.now();
      return;
    }
    switch (channel.mode) {
      case 0:
      case 1:
      case 4:
        this.startTimer(channel.count, false);
        return;
      case 2:
      case 3:
        this.startTimer(channel.count, true);
        return;
      default:
        this.timer.cancel();
    }
  }

  /** `create_pit_timer`. */
  private startTimer(count: number, periodic: boolean): void {
    if (this.flags & KVM_PIT_FLAGS.HPET_LEGACY) return;
    const interval = (BigInt(count) * NSEC_PER_SEC) / KVM_PIT_FREQ;
    this.period = periodic && interval < MIN_TIMER_PERIOD_NS ? MIN_TIMER_PERIOD_NS : interval;
    this.periodic = periodic;
    this.resetReinject();
    this.expires = this.host.clock.now() + interval;
    this.timer.start(this.expires);
  }

  /** Nanoseconds that a channel has counted (`kpit_elapsed`). */
  private elapsed(index: number): bigint {
    const now = this.host.clock.now();
    if (index === 0) return this.period === 0n ? 0n : this.period - (this.expires - now);
    return now - (this.channels[index]?.count_load_time ?? now);
  }

  /** Cycles of the counters' clock that a channel has counted. */
  private cycles(index: number): bigint {
    const elapsed = this.elapsed(index);
    return elapsed <= 0n ? 0n : (elapsed * KVM_PIT_FREQ) / NSEC_PER_SEC;
  }

  private latchCount(index: number): void {
    const channel = this.channels[index];
    if (channel === undefined || channel.count_latched !== 0) return;
    channel.latched_count = pitCount(channel.mode, channel.count, this.cycles(index)) & 0xffff;
    channel.count_latched = channel.rw_mode;
  }

  private latchStatus(index: number): void {
    const channel = this.channels[index];
    if (channel === undefined || channel.status_latched !== 0) return;
    const output = pitOutput(channel.mode, channel.count, this.cycles(index)) ? 0x80 : 0;
    channel.status = output | ((channel.rw_mode << 4) & 0x30) | ((channel.mode << 1) & 0xe) | channel.bcd;
    channel.status_latched = 1;
  }

  /** `pit_ioport_write`: a write to 0x40-0x43, of which the first byte counts. */
  write(port: number, value: number): void {
    const index = port & 3;
    if (index === 3) this.writeControl(value);
    else this.writeCount(index, value);
  }

  private writeControl(value: number): void {
    const selected = value >> 6;
    if (selected === 3) {
      for (let index = 0; index < CHANNELS; index++) {
        if (!(value & (2 << index))) continue;
        if (!(value & 0x20)) this.latchCount(index);
        if (!(value & 0x10)) this.latchStatus(index);
      }
      return;
    }
    const channel = this.channels[selected];
    const access = (value >> 4) & 3;
    if (channel === undefined) return;
    if (access === 0) {
      this.latchCount(selected);
      return;
    }
    channel.rw_mode = access;
    channel.read_state = access;
    channel.write_state = access;
    const mode = (value >> 1) & 7;
    channel.mode = mode > 5 ? mode - 4 : mode;
    channel.bcd = value & 1;
  }

  private writeCount(index: number, value: number): void {
    const channel = this.channels[index];
    if (channel === undefined) return;
    switch (channel.write_state) {
      case RW.MSB:
        this.load(index, value << 8);
        return;
      case RW.WORD0:
        channel.write_latch = value;
        channel.write_state = RW.WORD1;
        return;
      case RW.WORD1:
        this.load(index, channel.write_latch | (value << 8));
        channel.write_state = RW.WORD0;
        return;
      default:
        this.load(index, value);
    }
  }

  /** `pit_ioport_read`: the byte at 0x40-0x42; the control port reads as 0. */
  read(port: number): number {
    const index = port & 3;
    const channel = this.channels[index];
    if (channel === undefined) return 0;
    if (channel.status_latched !== 0) {
      channel.status_latched = 0;
      return channel.status;
    }
    if (channel.count_latched !== 0) return this.readLatched(channel);
    const count = pitCount(channel.mode, channel.count, this.cycles(index));
    const high = channel.read_state === RW.MSB || channel.read_state === RW.WORD1;
    if (channel.read_state === RW.WORD0) channel.read_state = RW.WORD1;
    else if (channel.read_state === RW.WORD1) channel.read_state = RW.WORD0;
    return high ? (count >> 8) & 0xff : count & 0xff;
  }

  private readLatched(channel: Channel): number {
    const high = channel.count_latched === RW.MSB;
    channel.count_latched = channel.count_latched === RW.WORD0 ? RW.MSB : 0;
    return high ? channel.latched_count >> 8 : channel.latched_count & 0xff;
  }

  /** `speaker_ioport_write`: port 0x61. */
  writeSpeaker(value: number): void {
    if (value & 2) this.flags |= KVM_PIT_FLAGS.SPEAKER_DATA_ON;
    else this.flags &= ~KVM_PIT_FLAGS.SPEAKER_DATA_ON;
    this.setGate(2, value & 1);
  }

  /** `pit_set_gate`: a rising edge starts the count again in the modes that look at the gate. */
  private setGate(index: number, gate: number): void {
    const channel = this.channels[index];
    if (channel === undefined) return;
    const restarts = channel.mode === 1 || channel.mode === 2 || channel.mode === 3 || channel.mode === 5;
    if (restarts && channel.gate < gate) channel.count_load_time = this.host.clock.now();
    channel.gate = gate;
  }

  /** `speaker_ioport_read`. The refresh clock toggles every 2^14 ns. */
  readSpeaker(): number {
    const channel = this.channels[2];
    if (channel === undefined) return 0;
    const refresh = Number((this.host.clock.now() >> 14n) & 1n) << 4;
    const output = pitOutput(channel.mode, channel.count, this.cycles(2)) ? 0x20 : 0;
    const data = this.flags & KVM_PIT_FLAGS.SPEAKER_DATA_ON ? 2 : 0;
    return data | channel.gate | output | refresh;
  }

  /** KVM_GET_PIT. */
  getState(): Uint8Array {
    return kvm_pit_state.encode({ channels: this.channels });
  }

  /** KVM_SET_PIT: every channel starts anew with its count. */
  setState(bytes: Uint8Array): void {
    this.channels = kvm_pit_state.decode(bytes).channels;
    this.reload(false);
  }

  /** KVM_GET_PIT2. */
  getState2(): Uint8Array {
    return kvm_pit_state2.encode({ channels: this.channels, flags: this.flags });
  }

  /** KVM_SET_PIT2; HPET_LEGACY stops channel 0, since the HPET takes its GSI. */
  setState2(bytes: Uint8Array): void {
    const { channels, flags } = kvm_pit_state2.decode(bytes);
    const hpetStarts = (flags & ~this.flags & KVM_PIT_FLAGS.HPET_LEGACY) !== 0;
    this.channels = channels;
    this.flags = flags;
    this.reload(hpetStarts);
  }

  private reload(hpetStarts: boolean): void {
    this.channels.forEach((channel, index) => {
      if (index === 0 && hpetStarts) {
        channel.count = channel.count === 0 ? 0x10000 : channel.count;
        this.timer.cancel();
      } else this.load(index, channel.count);
    });
  }

  /** `kvm_free_pit`. */
  destroy(): void {
    this.setReinject(false);
    this.timer.cancel();
  }
}
