import { describe, expect, it } from 'vitest';
import type { Vm } from '../../../../server/kernel/kvm/vm.js';
import { Findings } from '../../../../server/kernel/sanitizer/findings.js';
import { TransportPackets } from '../../../../server/kernel/sanitizer/transport-packets.js';
import { createTestHost } from '../kvm/test-host.js';

const header = (mac: number): Uint8Array => new Uint8Array(52).fill(mac, 20);
const setUp = () => {
  const findings = new Findings();
  const { vm } = createTestHost().createVm();
  const kinds = () => findings.all.map(({ domain, kind, vm: id }) => (domain === 'guest' && id === vm.id ? kind : 'WRONG'));
  return { vm, packets: new TransportPackets(findings), kinds };
};
const receive = ({ vm, packets }: { vm: Vm; packets: TransportPackets }, ...uses: [mac: number, gpa: number | null][]): void => {
  for (const [mac, gpa] of uses) packets.received(vm, header(mac), gpa);
};

describe('packets of guest memory in transport', () => {
  it('each used once, where it belongs, are no finding', () => {
    const { vm, packets, kinds } = setUp();
    for (const [mac, gpa] of [
      [1, 0x1000],
      [2, 0x2000],
      [3, 0x1000],
    ] as const)
      packets.sent(header(mac), gpa);
    receive({ vm, packets }, [1, 0x1000], [2, 0x2000], [3, 0x1000]);
    expect(kinds()).toEqual([]);
  });

  it('one used twice is, wherever it came from', () => {
    const { vm, packets, kinds } = setUp();
    receive({ vm, packets }, [1, 0x1000], [1, 0x1000], [1, null]);
    expect(kinds()).toEqual(['PACKET_REPEATED', 'PACKET_REPEATED']);
  });

  it('of this host’s guests, one that is put elsewhere, or after a newer one, is', () => {
    const { vm, packets, kinds } = setUp();
    packets.sent(header(1), 0x1000);
    packets.sent(header(2), 0x1000);
    receive({ vm, packets }, [2, 0x1000], [1, 0x1000]);
    expect(kinds()).toEqual(['PACKET_OUT_OF_ORDER']);
    packets.sent(header(3), 0x3000);
    receive({ vm, packets }, [3, 0x4000]);
    expect(kinds()).toEqual(['PACKET_OUT_OF_ORDER', 'PACKET_MISPLACED']);
  });

  it('are remembered beyond many others, with their order', () => {
    const { vm, packets, kinds } = setUp();
    packets.sent(header(2), 0x2000);
    const other = header(0);
    for (let count = 0; count < 2 ** 18; count++) {
      new DataView(other.buffer).setUint32(20, count, true);
      packets.sent(other, 0x4000_0000 + count * 0x1000);
      if (count === 1000) packets.sent(header(1), 0x1000);
    }
    packets.sent(header(3), 0x1000);
    receive({ vm, packets }, [1, 0x1000], [3, 0x1000], [2, 0x3000]);
    expect(kinds()).toEqual(['PACKET_MISPLACED']);
    packets.finished(vm);
    receive({ vm, packets }, [3, 0x1000], [1, 0x1000]);
    expect(kinds()).toEqual(['PACKET_MISPLACED', 'PACKET_OUT_OF_ORDER']);
  });

  it('are of one session: another may begin after it', () => {
    const { vm, packets, kinds } = setUp();
    receive({ vm, packets }, [1, 0x1000]);
    packets.finished(vm);
    receive({ vm, packets }, [1, 0x1000]);
    expect(kinds()).toEqual([]);
  });

  it('of memory without a slot say nothing of their place', () => {
    const { vm, packets, kinds } = setUp();
    packets.sent(header(1), null);
    packets.sent(header(2), 0x2000);
    receive({ vm, packets }, [1, 0x5000], [2, null]);
    expect(kinds()).toEqual([]);
  });
});
