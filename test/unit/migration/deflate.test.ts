import { deflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { createEntropy } from '../../../server/hardware/entropy.js';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { failed } from '../../../server/kernel/failure.js';
import { deflated, inflated } from '../../../server/migration/deflate.js';
import type { PageBatch } from '../../../server/migration/guest.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { completeIo, Migration, plainGuest, runOnce, sevGuest } from './two-hosts.js';

const none = new Uint8Array(0);
const clear = (data: Uint8Array): PageBatch => ({
  form: 'clear',
  gfns: Array.from({ length: data.length / PAGE_SIZE }, (_, index) => index),
  headers: none,
  data,
});

describe('pages that travel compressed', () => {
  it('come back as they were', () => {
    const data = Uint8Array.from({ length: 4 * PAGE_SIZE }, (_, index) => (index >>> 6) & 0xff);
    const travelling = deflated(clear(data));
    expect(travelling).toMatchObject({ form: 'deflated', gfns: [0, 1, 2, 3] });
    expect(travelling.data.length).toBeLessThan(data.length / 10);
    const back = inflated(travelling);
    expect(failed(back) ? back : { ...back, data: Uint8Array.from(back.data) }).toEqual(clear(data));
  });

  it('travel as they are where that is no larger, and always where they are sealed', () => {
    const noise = clear(createEntropy('noise').bytes(2 * PAGE_SIZE));
    expect(deflated(noise)).toBe(noise);
    const sealed: PageBatch = { ...clear(new Uint8Array(PAGE_SIZE)), form: 'sealed' };
    expect(deflated(sealed)).toBe(sealed);
  });

  it('are refused where they are more than they say, or no deflate stream', () => {
    const bomb = deflateRawSync(new Uint8Array(64 * 2 ** 20));
    for (const data of [bomb, none, Uint8Array.of(0xff, 0xff, 0xff)])
      for (const gfns of [[0], []])
        expect(inflated({ form: 'deflated', gfns, headers: none, data })).toMatchObject({
          errno: 'EINVAL',
          reason: 'PAGE_BATCH_NOT_INFLATED',
        });
  });
});

describe('a migration with compression', () => {
  it('brings the guest over in fewer bytes', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = plainGuest(here);
    const serial: number[] = [];
    runOnce(guest, serial);
    completeIo(guest);
    const migration = new Migration(guest, there.vmm, (frame) => frame, { compress: true });
    expect(migration.run()).toBe('sent');
    runOnce(migration.arrived(), serial);
    expect(serial).toEqual([1, 2]);
    const { bytesSent, pagesSent } = migration.source.statistics(0);
    expect(bytesSent).toBeLessThan((pagesSent * PAGE_SIZE) / 10);
  });

  it('leaves what the firmware has sealed as it is', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const migration = new Migration(sevGuest(here), there.vmm, (frame) => frame, { compress: true });
    expect(migration.run()).toBe('sent');
    const { bytesSent, pagesSent } = migration.source.statistics(0);
    expect(bytesSent).toBeGreaterThan(pagesSent * PAGE_SIZE);
  });

  it('is given up where the wire gives less than was sent', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = plainGuest(here);
    const shorten = (batch: PageBatch): PageBatch => ({ ...batch, data: deflateRawSync(new Uint8Array(100)) });
    const migration = new Migration(
      guest,
      there.vmm,
      (frame) =>
        frame.kind === 'data' && frame.message.kind === 'pages'
          ? { ...frame, message: { ...frame.message, batch: shorten(frame.message.batch) } }
          : frame,
      { compress: true },
    );
    expect(migration.run()).toBe('PAGE_BATCH_SIZE');
    expect(runOnce(guest, [])).toBe(2);
  });
});
