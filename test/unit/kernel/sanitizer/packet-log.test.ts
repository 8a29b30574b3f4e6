import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PacketLog } from '../../../../server/kernel/sanitizer/packet-log.js';

const MAC = 20;
/** A header that begins anywhere, with a MAC of few values in each word, so that many agree in some of them. */
const header = (mac: readonly number[]): Uint8Array => {
  const bytes = new Uint8Array(53).subarray(1);
  for (const [word, value] of mac.entries()) new DataView(bytes.buffer, bytes.byteOffset).setUint32(MAC + 4 * word, value);
  return bytes;
};
const words = fc.tuple(...Array.from({ length: 4 }, () => fc.constantFrom(0, 1, 256, 2 ** 24, 2 ** 32 - 1)));
const gpas = fc.option(fc.integer({ min: 0, max: 2 ** 52 - 1 }));

describe('the log of packets', () => {
  it('finds the last packet of each MAC, and where it belongs, however many there are', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(words, gpas), { maxLength: 1200 }), words, (packets, other) => {
        const log = new PacketLog();
        const model = new Map<string, number>();
        for (const [number, [mac, gpa]] of packets.entries()) {
          expect(log.find(header(mac))).toBe(model.get(mac.join()) ?? -1);
          expect(log.add(header(mac), gpa)).toBe(model.get(mac.join()) ?? -1);
          model.set(mac.join(), number);
        }
        expect(log.size).toBe(packets.length);
        for (const [mac] of packets) expect(log.find(header(mac))).toBe(model.get(mac.join()));
        for (const [number, [, gpa]] of packets.entries()) expect(log.gpa(number)).toBe(gpa);
        expect(log.find(header(other))).toBe(model.get(other.join()) ?? -1);
      }),
      { numRuns: 50 },
    );
  });
});
