import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { requires } from '../../helpers/requirements.js';
import { plainGuest, sevGuest } from '../migrating-guest.js';
import { machineIn } from './crossing.js';
import { Journey } from './journey.js';
import { Machine, NOTHING_LEFT } from './machine.js';
import { type Link, NetworkRig } from './network-rig.js';

const PATIENCE_MS = 150_000;
const JOURNEYS = 6;
/** As machineIn has it. */
const PORT = 7341;

/** Guests that go over a link between two machines, with nobody in the middle, while something is done to the link. */
const goOver = async (disturb: (link: Link) => Promise<void>): Promise<void> => {
  using rig = new NetworkRig();
  const [one, other] = [rig.namespace(), rig.namespace()];
  const link = rig.link(one, other);
  await using here = new Machine(machineIn(rig, one));
  await using there = new Machine(machineIn(rig, other));
  const address = `${link.far}:${PORT}`;
  await here.start('--peer', there.fingerprint, '--advertise', `${link.near}:${PORT}`);
  await there.start('--peer', here.fingerprint, '--advertise', address);
  const guests = await Promise.all(
    Array.from({ length: JOURNEYS }, (_, index) => (index % 2 === 0 ? plainGuest : sevGuest)(here)),
  );
  const journeys = guests.map((guest, index) => new Journey({ there, address }, `journey-${index}`, guest));
  await Promise.race(journeys.map(({ refusal }) => refusal));
  await disturb(link);
  for (const journey of journeys) {
    const ends = async () =>
      (await Promise.all([journey.seenBy(here), journey.seenBy(there)])).map((half) => half?.closed ?? true);
    // One that could not begin is where it was.
    const place = (await journey.refusal) === null ? 'there' : 'here';
    await expect.poll(ends, { timeout: PATIENCE_MS, interval: 100 }).toEqual([true, true]);
    expect([await journey.runsAt(PATIENCE_MS), journey.isWhole]).toEqual([[place], true]);
  }
  await Promise.all(journeys.map((journey) => journey.end()));
  for (const machine of [here, there]) {
    await machine.restartVmm();
    expect(await machine.leftovers()).toEqual(NOTHING_LEFT);
  }
};

describe('a link between two machines', () => {
  requires('netns', 'links between daemons');

  it('that is cut and healed again and again', () =>
    goOver(async (link) => {
      for (let cut = 0; cut < 8; cut++) {
        await delay(20 * cut);
        link.cut();
        await delay(100);
        link.heal();
      }
    }));
});

describe('a bad link between two machines', () => {
  requires('netns', 'links between daemons');
  requires('netem', 'links that lose and delay what is sent');

  it('that loses and delays', () => goOver(async (link) => link.disturb('delay 20ms loss 5%')));
});
