import { describe, expect, it } from 'vitest';
import { introduce, migrate, PostCopy, type ReceivedGuest } from '../../../client/index.js';
import {
  type CountingGuest,
  type Host,
  plainGuest,
  runWhile,
  sevGuest,
  startHost,
  startHosts,
  upTo,
} from '../migrating-guest.js';
import { NOTHING_LEFT } from './machine.js';

const HOPS = 10;
const AT_ONCE = 200;
/** Numbers that a guest says at each place. */
const SAID = 3;

const guestOf = ({ vm, vcpus: [vcpu] }: ReceivedGuest): CountingGuest => {
  if (vcpu === undefined) throw new Error('no vCPU');
  return { vm, vcpu };
};

const close = async ({ vm, vcpu }: CountingGuest): Promise<void> => {
  await vcpu.close();
  await vm.close();
};

/** Once the VMMs have ended there is nothing on the hosts. */
const expectNothing = async (...hosts: readonly Host[]): Promise<void> => {
  for (const { process, simkvm } of hosts) {
    await process[Symbol.asyncDispose]();
    const { vms, kmem, sev, findings } = await simkvm.host.getHost();
    expect({ vms, kmem, contexts: sev?.guest_count, findings }).toEqual(NOTHING_LEFT);
  }
};

describe('guests that migrate again and again', () => {
  it.each([
    ['plain', plainGuest, {}],
    ['plain, post-copied', plainGuest, { post_copy: PostCopy.POST_COPY_AT_ONCE }],
    ['SEV', sevGuest, {}],
  ] as const)(
    `a %s guest goes ${HOPS} hops around a ring of three hosts, and each source that is closed leaves nothing`,
    async (_name, make, limits) => {
      await using one = await startHost();
      await using two = await startHost();
      await using three = await startHost();
      const ring = [one, two, three] as const;
      for (const [index, { simkvm }] of ring.entries())
        await introduce(simkvm.migrations, (ring[(index + 1) % 3] ?? one).simkvm.migrations);
      let guest = await make(one);
      const serial: number[] = [];
      for (let hop = 1; hop <= HOPS; hop++) {
        const from = guest;
        const running = runWhile(from, serial, () => true);
        const { process } = ring[hop % 3] ?? one;
        const { received, completed } = await migrate(from.vm, { to: process, limits });
        guest = guestOf(received);
        expect(await running).toBe('EIO');
        await completed();
        await close(from);
        const { simkvm } = ring[(hop - 1) % 3] ?? one;
        const { kmem, sev } = await simkvm.host.getHost();
        expect({ hop, kmem, contexts: sev?.guest_count }).toEqual({ hop, kmem: [], contexts: 0 });
        const before = serial.length;
        await runWhile(guest, serial, () => serial.length < before + SAID);
      }
      expect(serial).toEqual(upTo(serial.length));
      await expectNothing(...ring);
    },
  );

  it(`${AT_ONCE} guests go from one host to another at once`, async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const made = await Promise.all(
      Array.from({ length: AT_ONCE }, (_, index) => (index % 2 === 0 ? plainGuest : sevGuest)(here)),
    );
    const serials = made.map((): number[] => []);
    const say = (guest: CountingGuest, index: number) => {
      const serial = serials[index] ?? [];
      const upToNow = serial.length;
      return runWhile(guest, serial, () => serial.length < upToNow + SAID);
    };
    await Promise.all(made.map(say));
    // What a guest has said is not over before its VMM says so.
    await Promise.all(made.map(({ vcpu }) => vcpu.try.run({ immediate_exit: 1 })));
    const migrated = await Promise.all(made.map(({ vm }) => migrate(vm, { to: there.process })));
    await Promise.all(migrated.map(({ received }, index) => say(guestOf(received), index)));
    expect(new Set(serials.map(String))).toEqual(new Set([String(upTo(2 * SAID))]));
    await expectNothing(here, there);
  });
});
