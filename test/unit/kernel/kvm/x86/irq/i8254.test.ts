import { describe, expect, it } from 'vitest';
import { I8254 } from '../../../../../../server/kernel/kvm/x86/irq/i8254.js';
import { IrqNotifiers } from '../../../../../../server/kernel/kvm/x86/irq/irq-notifiers.js';
import { TimerQueue } from '../../../../../../server/kernel/timer.js';
import { kvm_pit_state2 } from '../../../../../../server/kernel/uapi/irq-structs.js';

class PitBench {
  readonly timers = new TimerQueue();
  readonly notifiers = new IrqNotifiers(() => {});
  readonly pit: I8254;
  ticks = 0;
  private time = 0n;

  constructor() {
    this.pit = new I8254({
      clock: { now: () => this.time },
      timers: this.timers,
      notifiers: this.notifiers,
      tick: () => {
        this.ticks++;
      },
    });
  }

  advance(nanoseconds: bigint): void {
    this.time += nanoseconds;
    this.timers.advance(this.time);
  }

  /** Mode and 16-bit count of a channel. */
  program(channel: number, mode: number, count: number): void {
    this.pit.write(0x43, (channel << 6) | 0x30 | (mode << 1));
    this.pit.write(0x40 + channel, count & 0xff);
    this.pit.write(0x40 + channel, count >> 8);
  }

  /** The guest has ended the tick's interrupt. */
  ack(): void {
    this.notifiers.acked(0);
  }

  readCount(channel: number): number {
    return this.pit.read(0x40 + channel) | (this.pit.read(0x40 + channel) << 8);
  }
}

/** 1193 counts are a millisecond, but for this. */
const PERIOD = (1193n * 1_000_000_000n) / 1_193_182n;

describe('the interval timer', () => {
  it('has the reset state of recorded KVM, and no timer', () => {
    const { pit, timers } = new PitBench();
    const { channels, flags } = kvm_pit_state2.decode(pit.getState2());
    expect(flags).toBe(0);
    expect(channels.map(({ count, mode, bcd, gate }) => [count, mode, bcd, gate])).toEqual([
      [65536, 255, 0, 1],
      [65536, 255, 0, 1],
      [65536, 255, 0, 0],
    ]);
    expect(timers.nextDeadline()).toBeNull();
  });

  it('ticks once in mode 0, and again and again in mode 2', () => {
    const bench = new PitBench();
    bench.program(0, 0, 1193);
    bench.advance(10n * PERIOD);
    expect(bench.ticks).toBe(1);
    bench.ack();
    bench.program(0, 2, 1193);
    for (let n = 0; n < 3; n++) {
      bench.advance(PERIOD);
      bench.ack();
    }
    expect(bench.ticks).toBe(4);
  });

  it('keeps ticks that the guest has not acknowledged, and delivers them one after the other', () => {
    const bench = new PitBench();
    bench.program(0, 2, 1193);
    bench.advance(PERIOD);
    bench.advance(PERIOD);
    expect(bench.ticks).toBe(1);
    bench.advance(2n * PERIOD);
    expect(bench.ticks).toBe(1);
    for (let n = 0; n < 4; n++) bench.ack();
    expect(bench.ticks).toBe(4);
    bench.ack();
    expect(bench.ticks).toBe(4);
  });

  it('forgets them when the guest unmasks the line, and when reinjection is switched off', () => {
    const bench = new PitBench();
    bench.program(0, 2, 1193);
    bench.advance(4n * PERIOD);
    bench.notifiers.masked(0, false);
    bench.ack();
    expect(bench.ticks).toBe(1);
    bench.pit.setReinject(false);
    expect(bench.notifiers.hasAck(0)).toBe(false);
    bench.advance(PERIOD);
    bench.advance(PERIOD);
    expect(bench.ticks).toBe(3);
  });

  it('is not faster than 200 microseconds in a periodic mode', () => {
    const bench = new PitBench();
    bench.pit.setReinject(false);
    bench.program(0, 2, 100);
    bench.advance(1_000_000n);
    expect(bench.ticks).toBeLessThanOrEqual(5);
    expect(bench.timers.nextDeadline()).not.toBeNull();
  });

  it('counts down, latches count and status, and reads byte by byte', () => {
    const bench = new PitBench();
    bench.program(1, 0, 0x1234);
    bench.advance(838n * 0x34n);
    const count = bench.readCount(1);
    expect(Math.abs(count - 0x1200)).toBeLessThanOrEqual(1);
    bench.pit.write(0x43, 0xc0 | (2 << 1));
    bench.advance(1_000_000n);
    const status = bench.pit.read(0x41);
    expect(status).toBe((3 << 4) | (0 << 1));
    expect(bench.readCount(1)).toBe(count);
  });

  it('drives the speaker port: gate of channel 2, data bit, its output', () => {
    const bench = new PitBench();
    bench.program(2, 3, 1193);
    bench.pit.writeSpeaker(3);
    expect(bench.pit.readSpeaker() & 0x23).toBe(0x23);
    bench.advance(PERIOD / 2n + 1_000n);
    expect(bench.pit.readSpeaker() & 0x23).toBe(0x03);
    bench.pit.writeSpeaker(0);
    expect(bench.pit.readSpeaker() & 0x03).toBe(0);
  });

  it('starts anew with the counts of a state that is set, unless the HPET takes over', () => {
    const source = new PitBench();
    source.program(0, 2, 1193);
    const state = source.pit.getState2();
    const target = new PitBench();
    target.pit.setState2(state);
    target.advance(PERIOD);
    expect(target.ticks).toBe(1);
    const legacy = new PitBench();
    kvm_pit_state2.write(state, { flags: 1 });
    legacy.pit.setState2(state);
    legacy.advance(10n * PERIOD);
    expect(legacy.ticks).toBe(0);
    expect(legacy.timers.nextDeadline()).toBeNull();
  });

  it('leaves no timer and no notifier behind', () => {
    const bench = new PitBench();
    bench.program(0, 2, 1193);
    bench.pit.destroy();
    expect(bench.timers.nextDeadline()).toBeNull();
    expect(bench.notifiers.hasAck(0)).toBe(false);
  });
});
