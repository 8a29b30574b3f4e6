import { describe, expect, it } from 'vitest';
import { I8259 } from '../../../../../../server/kernel/kvm/x86/irq/i8259.js';
import { IRQ_SOURCE } from '../../../../../../server/kernel/kvm/x86/irq/irq-line.js';

interface Bench {
  readonly pic: I8259;
  readonly acked: number[];
  readonly masked: string[];
  wakes: number;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const { USERSPACE, IRQFD_RESAMPLE } = IRQ_SOURCE;

/** ICW1 to ICW4 with vectors from 0x20 and 0x28; every line open. */
const initialise = (pic: I8259, icw4 = 0x01): void => {
  for (const [port, value] of [
    ...[
      [0x20, 0x11],
      [0x21, 0x20],
      [0x21, 0x04],
      [0x21, icw4],
      [0x21, 0x00],
    ],
    ...[
      [0xa0, 0x11],
      [0xa1, 0x28],
      [0xa1, 0x02],
      [0xa1, icw4],
      [0xa1, 0x00],
    ],
  ] as const)
    pic.write(port, value);
};

const create = (): Bench => {
  const bench: Bench = {
    acked: [],
    masked: [],
    wakes: 0,
    pic: new I8259({
      wake: () => {
        bench.wakes++;
      },
      acked: (pin) => bench.acked.push(pin),
      masked: (pin, mask) => bench.masked.push(`${pin}:${mask}`),
      taken: true,
    }),
  };
  return bench;
};

const initialised = (): Bench => {
  const bench = create();
  initialise(bench.pic);
  bench.masked.length = 0;
  return bench;
};

const edge = ({ pic }: Bench, pin: number): void => {
  pic.setIrq(pin, USERSPACE, true);
  pic.setIrq(pin, USERSPACE, false);
};

const EOI = 0x20;

describe('the pair of 8259s', () => {
  it('shows the state of recorded KVM: edges in last_irr and irr, the cascade in the master', () => {
    const { pic } = create();
    expect(hex(pic.getState('master'))).toBe('000000000000000000000000000000f8');
    expect(hex(pic.getState('slave'))).toBe('000000000000000000000000000000de');
    pic.setIrq(3, USERSPACE, true);
    expect(hex(pic.getState('master'))).toBe('080800000000000000000000000000f8');
    pic.setIrq(3, USERSPACE, false);
    expect(hex(pic.getState('master'))).toBe('000800000000000000000000000000f8');
    pic.setIrq(10, USERSPACE, true);
    expect(hex(pic.getState('slave'))).toBe('040400000000000000000000000000de');
    expect(hex(pic.getState('master'))).toBe('000c00000000000000000000000000f8');
  });

  it('has vectors and ICW4 in its state after initialisation', () => {
    const { pic } = initialised();
    expect(hex(pic.getState('master'))).toBe('000000000020000000000000000100f8');
    expect(hex(pic.getState('slave'))).toBe('000000000028000000000000000100de');
  });

  it('delivers one interrupt an edge, and none for a line that stays high', () => {
    const bench = initialised();
    expect(bench.pic.setIrq(3, USERSPACE, true)).toBe(1);
    expect(bench.pic.intr).toBe(true);
    expect(bench.pic.readIrq()).toBe(0x23);
    bench.pic.write(0x20, EOI);
    expect(bench.pic.setIrq(3, USERSPACE, true)).toBe(1);
    expect(bench.pic.intr).toBe(false);
  });

  it('tells coalesced (0) and masked (-1) edges', () => {
    const bench = initialised();
    edge(bench, 3);
    expect(bench.pic.setIrq(3, USERSPACE, true)).toBe(0);
    bench.pic.write(0x21, 1 << 4);
    expect(bench.pic.setIrq(4, USERSPACE, true)).toBe(-1);
    expect(bench.masked).toEqual(['4:true']);
  });

  it('asks again for a level line that is still high after EOI', () => {
    const bench = initialised();
    bench.pic.write(0x4d0, 0xff);
    expect(bench.pic.read(0x4d0)).toBe(0xf8);
    bench.pic.setIrq(5, USERSPACE, true);
    expect(bench.pic.readIrq()).toBe(0x25);
    expect(bench.pic.intr).toBe(false);
    bench.pic.write(0x20, EOI);
    expect(bench.pic.intr).toBe(true);
    bench.pic.setIrq(5, USERSPACE, false);
    expect(bench.pic.intr).toBe(false);
    expect(bench.pic.readIrq()).toBe(0x27);
  });

  it('keeps a line high while any source holds it', () => {
    const bench = initialised();
    bench.pic.write(0x4d0, 0xff);
    bench.pic.setIrq(5, USERSPACE, true);
    bench.pic.setIrq(5, IRQFD_RESAMPLE, true);
    bench.pic.setIrq(5, USERSPACE, false);
    expect(bench.pic.readIrq()).toBe(0x25);
    bench.pic.write(0x20, EOI);
    expect(bench.pic.readIrq()).toBe(0x25);
    bench.pic.setIrq(5, IRQFD_RESAMPLE, false);
    bench.pic.write(0x20, EOI);
    expect(bench.pic.readIrq()).toBe(0x27);
  });

  it('serves the highest priority first, and lets only a higher one interrupt a handler', () => {
    const bench = initialised();
    edge(bench, 4);
    edge(bench, 3);
    expect(bench.pic.readIrq()).toBe(0x23);
    edge(bench, 6);
    expect(bench.pic.intr).toBe(false);
    edge(bench, 1);
    expect(bench.pic.readIrq()).toBe(0x21);
    bench.pic.write(0x20, EOI);
    bench.pic.write(0x20, EOI);
    expect(bench.pic.readIrq()).toBe(0x24);
  });

  it('fetches a slave interrupt with two acknowledgements, and tells both EOIs', () => {
    const bench = initialised();
    edge(bench, 10);
    expect(bench.pic.readIrq()).toBe(0x2a);
    bench.pic.write(0xa0, EOI);
    bench.pic.write(0x20, EOI);
    expect(bench.acked).toEqual([10, 2]);
  });

  it('gives the vector of line 7 when the request has gone away', () => {
    const bench = initialised();
    edge(bench, 3);
    bench.pic.write(0x21, 0xff);
    expect(bench.pic.readIrq()).toBe(0x27);
    expect(hex(bench.pic.getState('master')).slice(6, 8)).toBe('00');
  });

  it('ends an interrupt by itself with auto EOI', () => {
    const bench = create();
    initialise(bench.pic, 0x03);
    edge(bench, 3);
    expect(bench.pic.readIrq()).toBe(0x23);
    expect(bench.acked).toEqual([3]);
    edge(bench, 4);
    expect(bench.pic.readIrq()).toBe(0x24);
  });

  it('rotates priorities with a rotating EOI', () => {
    const bench = initialised();
    edge(bench, 3);
    bench.pic.readIrq();
    bench.pic.write(0x20, 0xa0);
    edge(bench, 3);
    edge(bench, 4);
    expect(bench.pic.readIrq()).toBe(0x24);
  });

  it('sets priorities and ends a specific interrupt', () => {
    const bench = initialised();
    bench.pic.write(0x20, 0xc0 | 3);
    edge(bench, 3);
    edge(bench, 5);
    expect(bench.pic.readIrq()).toBe(0x25);
    bench.pic.write(0x20, 0x60 | 5);
    expect(bench.acked).toEqual([5]);
    expect(bench.pic.readIrq()).toBe(0x23);
  });

  it('lets further slave requests through in special fully nested mode', () => {
    const bench = create();
    initialise(bench.pic, 0x11);
    edge(bench, 12);
    expect(bench.pic.readIrq()).toBe(0x2c);
    edge(bench, 9);
    expect(bench.pic.readIrq()).toBe(0x29);
  });

  it('shows IRR, ISR and IMR, and acknowledges a poll', () => {
    const bench = initialised();
    edge(bench, 3);
    expect(bench.pic.read(0x20)).toBe(0x08);
    bench.pic.readIrq();
    bench.pic.write(0x20, 0x0b);
    expect(bench.pic.read(0x20)).toBe(0x08);
    bench.pic.write(0x20, EOI);
    bench.pic.write(0x21, 0x55);
    expect(bench.pic.read(0x21)).toBe(0x55);
    bench.pic.write(0x21, 0);
    edge(bench, 5);
    bench.pic.write(0x20, 0x0c);
    expect(bench.pic.read(0x20)).toBe(5);
    expect(bench.acked).toEqual([3, 5]);
    expect(bench.pic.intr).toBe(false);
  });

  it('wakes a vCPU when INTR goes up, also for the next request behind an acknowledged one', () => {
    const bench = initialised();
    edge(bench, 4);
    expect(bench.wakes).toBe(1);
    edge(bench, 3);
    expect(bench.wakes).toBe(1);
    bench.pic.readIrq();
    bench.pic.write(0x20, EOI);
    expect(bench.wakes).toBe(2);
  });

  it('counts an edge that ICW1 throws away as acknowledged', () => {
    const bench = initialised();
    edge(bench, 0);
    bench.pic.write(0x20, 0x11);
    expect(bench.acked).toEqual([0]);
  });

  it('takes back the state that it gave', () => {
    const bench = initialised();
    edge(bench, 3);
    const state = bench.pic.getState('master');
    const other = create();
    other.pic.setState('master', state);
    expect(other.pic.readIrq()).toBe(0x23);
  });
});
