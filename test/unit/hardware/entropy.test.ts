import { describe, expect, it } from 'vitest';
import { createEntropy } from '../../../server/hardware/entropy.js';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('a seeded entropy source', () => {
  it('gives the same bytes for the same seed, however they are drawn', () => {
    const whole = createEntropy('seed').bytes(5000);
    const pieces = createEntropy('seed');
    expect(hex(Buffer.concat([pieces.bytes(1), pieces.bytes(1023), pieces.bytes(3000), pieces.bytes(976)]))).toBe(hex(whole));
  });

  it('gives other bytes for another seed', () => {
    expect(hex(createEntropy('a').bytes(16))).not.toBe(hex(createEntropy('b').bytes(16)));
  });

  it('forks by label alone, whatever was drawn before', () => {
    const one = createEntropy('seed');
    const two = createEntropy('seed');
    two.bytes(100);
    expect(hex(one.fork('pek').bytes(32))).toBe(hex(two.fork('pek').bytes(32)));
    expect(hex(one.fork('pek').bytes(32))).not.toBe(hex(one.fork('pdh').bytes(32)));
    expect(hex(one.fork('pek').bytes(32))).not.toBe(hex(createEntropy('other').fork('pek').bytes(32)));
  });
});
