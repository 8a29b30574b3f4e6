import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { HeldAck } from '../../../../server/rpc/migration/held-ack.js';

const ack = (received: number) => ({ session: 'session', boot: 'boot', kind: 'ack', received }) as const;

describe('an acknowledgement', () => {
  const sent: number[] = [];
  let acks: HeldAck;

  beforeEach(() => {
    vi.useFakeTimers();
    sent.length = 0;
    acks = new HeldAck(({ received }) => sent.push(received));
  });
  afterEach(() => vi.useRealTimers());

  it('stands for three before it', () => {
    for (let received = 1; received <= 9; received++) acks.hold(ack(received));
    expect(sent).toEqual([4, 8]);
  });

  it('goes by itself when none comes behind it, once', () => {
    acks.hold(ack(1));
    acks.hold(ack(2));
    expect(sent).toEqual([]);
    vi.runAllTimers();
    expect(sent).toEqual([2]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('goes before what its side says next, and is not said again', () => {
    acks.hold(ack(1));
    acks.flush();
    acks.flush();
    vi.runAllTimers();
    expect(sent).toEqual([1]);
  });
});
