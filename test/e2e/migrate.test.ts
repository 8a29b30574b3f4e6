import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { migrate } from '../../client/index.js';
import { sevEsGuest } from './counting-es-guest.js';
import { type CountingGuest, type Host, plainGuest, runWhile, sevGuest, startHosts, upTo } from './migrating-guest.js';

const GUESTS: Readonly<Record<string, (host: Host) => Promise<CountingGuest>>> = {
  plain: plainGuest,
  SEV: sevGuest,
  'SEV-ES': sevEsGuest,
};

describe.each(Object.entries(GUESTS))('a %s guest that counts while it migrates', (_name, makeGuest) => {
  let hosts: Awaited<ReturnType<typeof startHosts>>;
  beforeAll(async () => {
    hosts = await startHosts();
  });
  afterAll(() => hosts[Symbol.asyncDispose]());

  it.each([
    ['pulled by the destination', {}],
    ['pushed by the source', { push: true }],
    ['over three streams, with pages made smaller', { limits: { streams: 3, compress: true } }],
  ])('%s, goes on on the other host with no gap and no repetition', async (_how, options) => {
    const { here, there } = hosts;
    const guest = await makeGuest(here);
    const serial: number[] = [];
    await runWhile(guest, serial, () => serial.length < 20);
    const running = runWhile(guest, serial, () => true);
    const { received } = await migrate(guest.vm, { to: there.process, ...options });
    expect(await running).toBe('EIO');
    const [vcpu] = received.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const left = serial.length;
    expect(left).toBeGreaterThan(20);
    await runWhile({ vm: received.vm, vcpu }, serial, () => serial.length < left + 20);
    expect(serial).toEqual(upTo(serial.length));
  });

  it('leaves nothing behind on either host once it is closed', async () => {
    for (const { process, simkvm } of [hosts.here, hosts.there]) {
      await process[Symbol.asyncDispose]();
      const { vms, kmem, sev, findings } = await simkvm.host.getHost();
      expect({ vms, kmem, contexts: sev?.guest_count, findings }).toEqual({ vms: 0, kmem: [], contexts: 0, findings: 0n });
    }
  });
});

describe('between hosts whose calls overtake each other at every lock', () => {
  it.each(Object.entries(GUESTS))('a %s guest migrates all the same', async (_name, makeGuest) => {
    await using hosts = await startHosts('--preempt-at-locks');
    const { here, there } = hosts;
    const guest = await makeGuest(here);
    const serial: number[] = [];
    const running = runWhile(guest, serial, () => true);
    const { received } = await migrate(guest.vm, { to: there.process });
    expect(await running).toBe('EIO');
    const [vcpu] = received.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const left = serial.length;
    await runWhile({ vm: received.vm, vcpu }, serial, () => serial.length < left + 20);
    expect(serial).toEqual(upTo(serial.length));
  });
});
