import { describe, expect, it } from 'vitest';
import { MigrationStanding } from '../../../client/index.js';
import { receivedGuest } from '../../../client/received-guest.js';
import { ExchangeRequest, MigrationFrame } from '../../../gen/messages.js';
import { plainGuest, sevGuest } from '../migrating-guest.js';
import { Crossing } from './crossing.js';
import { Journey, type Manner } from './journey.js';
import { NOTHING_LEFT } from './machine.js';
import { DEEDS, type Deed, FLIPS, nameOfKind, SessionMeddler, untilWanted } from './meddling.js';
import type { Meddler, Passage } from './middle.js';

/*
 * Somebody in the middle of two daemons does what he can to one message of each migration: it is the daemon's, and its next one, or
 * the migration ends before the guest runs at the destination.
 */

const PATIENCE_MS = 150_000;
const PAGE = 4096;
const { MIGRATION_STANDING_COMMITTED: COMMITTED, MIGRATION_STANDING_SENT: SENT } = MigrationStanding;

type Kind = Pick<Passage, 'from' | 'what'>;

/** Everything that is said before the guest is the destination's, but for what the clock says. */
const FRAMES: readonly Kind[] = [
  ...(['offer', 'start', 'pages', 'state', 'prepare', 'commit'] as const).map((what) => ({ from: 'source' as const, what })),
  ...(['accept', 'prepared'] as const).map((what) => ({ from: 'destination' as const, what })),
];
/** What is said of memory that follows a guest which runs already. */
const AFTERWARDS: readonly Kind[] = [
  { from: 'source', what: 'pages' },
  { from: 'destination', what: 'committed' },
  { from: 'destination', what: 'wanted' },
  { from: 'destination', what: 'complete' },
];
const HANDSHAKE: readonly Kind[] = (['source', 'destination'] as const).flatMap((from) =>
  ['hello', 'proof'].map((what) => ({ from, what })),
);

/** Lets every kind of message be said. */
const inFull = (manner: Manner, meddler: Meddler): Meddler => (manner === 'pre-copy' ? meddler : untilWanted(meddler));

/** The messages of a migration that goes well. */
const oldSession = async (crossing: Crossing, manner: Manner): Promise<ReadonlyMap<string, Buffer>> => {
  const old = new Map<string, Buffer>();
  crossing.middle.meddler = inFull(manner, (passage) => {
    if (passage.ordinal === 1) old.set(nameOfKind(passage), passage.bytes);
    return [passage.bytes];
  });
  const journey = new Journey(crossing, 'old', await plainGuest(crossing.here), manner);
  await expect.poll(async () => (await journey.seenBy(crossing.there))?.closed, { timeout: PATIENCE_MS }).toBe(true);
  await journey.end();
  return old;
};

interface Attempt {
  readonly kind: Kind;
  readonly what: string;
  readonly journey: Journey;
  /** Whether the message was ever said. */
  readonly meddled: () => boolean;
}

/** A migration for each thing that may be done to each message, all at once. */
const attempts = async (
  crossing: Crossing,
  kinds: readonly Kind[],
  deeds: Readonly<Record<string, Deed>>,
  manner: Manner = 'pre-copy',
): Promise<Attempt[]> => {
  const meddler = new SessionMeddler(await oldSession(crossing, manner));
  crossing.middle.meddler = inFull(manner, meddler.meddler);
  const planned = kinds.flatMap((kind) => Object.entries(deeds).map(([name, deed]) => ({ kind, name, deed })));
  // Memory that is encrypted does not follow a guest.
  const makeGuest = (index: number) => (manner === 'pre-copy' && index % 4 === 0 ? sevGuest : plainGuest);
  const guests = await Promise.all(planned.map((_, index) => makeGuest(index)(crossing.here)));
  return planned.map(({ kind, name, deed }, index) => {
    const guest = guests[index];
    if (guest === undefined) throw new Error('no guest');
    const session = `attempt-${index}`;
    meddler.plan(session, kind, deed);
    return {
      kind,
      what: `${nameOfKind(kind)}, which he ${name}`,
      journey: new Journey(crossing, session, guest, manner),
      meddled: () => meddler.meddled.has(session),
    };
  });
};

/** Waits until both daemons know how it ended, and looks. */
const outcomeOf = async ({ here, there }: Crossing, { what, journey }: Attempt) => {
  const refusal = (await journey.refusal)?.reason ?? '';
  const seen = () => Promise.all([journey.seenBy(here), journey.seenBy(there)]);
  const open = async () => (await seen()).filter((half) => half !== null && !half.closed).map((half) => half?.phase);
  await expect.poll(open, { timeout: PATIENCE_MS, interval: 200, message: what }).toEqual([]);
  const [source, destination] = await seen();
  const reasons = [refusal, source?.reason ?? '', destination?.reason ?? ''];
  const runs = await journey.runsAt(PATIENCE_MS);
  return { what, runs, isWhole: journey.isWhole, standings: [source?.standing, destination?.standing], reasons };
};

const endAll = async (crossing: Crossing, all: readonly Attempt[]): Promise<void> => {
  await Promise.all(all.map(({ journey }) => journey.end()));
  for (const machine of [crossing.here, crossing.there]) {
    await machine.restartVmm();
    expect(await machine.leftovers()).toEqual(NOTHING_LEFT);
  }
};

describe('somebody in the middle of two daemons', () => {
  it.each(FRAMES.map((kind) => [nameOfKind(kind), kind] as const))(
    'who does anything to it is found out, and the guest stays (%s)',
    async (_name, kind) => {
      await using crossing = await Crossing.start();
      const all = await attempts(crossing, [kind], DEEDS);
      for (const { what, runs, isWhole, standings, reasons } of await Promise.all(
        all.map((attempt) => outcomeOf(crossing, attempt)),
      )) {
        // The first of two is the daemon's own: the guest goes, and the second one changes nothing.
        const isGone = /(commit|prepared), which he says it twice/.test(what);
        expect({ what, runs, isWhole }).toEqual({ what, runs: [isGone ? 'there' : 'here'], isWhole: true });
        if (isGone) expect(standings).toEqual([SENT, COMMITTED]);
        else expect(standings, what).not.toContain(COMMITTED);
        if (!isGone) expect(reasons.join(), what).toMatch(/FRAME_(OUT_OF_ORDER|NOT_AUTHENTIC)/);
      }
      await endAll(crossing, all);
    },
  );

  it('who does anything to what is owed is found out, and the guest stays', async () => {
    await using crossing = await Crossing.start();
    const all = await attempts(crossing, [{ from: 'source', what: 'owed' }], DEEDS, 'post-copy');
    for (const { what, runs, isWhole, reasons } of await Promise.all(all.map((attempt) => outcomeOf(crossing, attempt)))) {
      expect({ what, runs, isWhole }).toEqual({ what, runs: ['here'], isWhole: true });
      expect(reasons.join(), what).toMatch(/FRAME_(OUT_OF_ORDER|NOT_AUTHENTIC)/);
    }
    await endAll(crossing, all);
  });

  it.each(AFTERWARDS.map((kind) => [nameOfKind(kind), kind] as const))(
    'who does anything to it once the guest runs there changes nothing: it is said again over another stream (%s)',
    async (_name, kind) => {
      await using crossing = await Crossing.start();
      const all = await attempts(crossing, [kind], DEEDS, 'post-copy');
      for (const { what, runs, isWhole, standings } of await Promise.all(all.map((attempt) => outcomeOf(crossing, attempt))))
        expect({ what, runs, isWhole, standings }).toEqual({
          what,
          runs: ['there'],
          isWhole: true,
          standings: [SENT, COMMITTED],
        });
      expect(all.filter((attempt) => attempt.meddled())).toHaveLength(all.length);
      await endAll(crossing, all);
    },
  );

  it('who changes a bit while the daemons prove themselves to each other is let in by neither', async () => {
    await using crossing = await Crossing.start();
    const replay = 'says what an old session said';
    const all = await attempts(crossing, HANDSHAKE, {
      ...FLIPS,
      ...Object.fromEntries(Object.entries(DEEDS).filter(([name]) => name === replay)),
    });
    for (const { what, runs, isWhole, reasons } of await Promise.all(all.map((attempt) => outcomeOf(crossing, attempt)))) {
      expect({ what, runs, isWhole }).toEqual({ what, runs: ['here'], isWhole: true });
      expect(reasons[0], what).not.toBe('');
    }
    await endAll(crossing, all);
  });
});

/** The sealed packet of one page, used for another one too. */
const useTwice =
  (of: number, as: number): Meddler =>
  ({ what, bytes }) => {
    if (what !== 'pages') return [bytes];
    const frame = MigrationFrame.decode(ExchangeRequest.decode(bytes).sealed ?? bytes);
    const pages = frame.data?.pages;
    if (!pages) return [bytes];
    const [from, to] = [pages.gfns.indexOf(BigInt(of)), pages.gfns.indexOf(BigInt(as))];
    if (from < 0 || to < 0) return [bytes];
    for (const field of [pages.headers, pages.data]) {
      const size = field.length / pages.gfns.length;
      field.copyWithin(to * size, from * size, (from + 1) * size);
    }
    return [Buffer.from(ExchangeRequest.encode({ sealed: MigrationFrame.encode(frame).finish() }).finish())];
  };

describe('without the daemons’ own authentication (--migration-unsealed)', () => {
  it('a SEV page in another one’s place is taken by the firmware, and found by the sanitizer', async () => {
    await using crossing = await Crossing.start({ args: ['--migration-unsealed'] });
    const { here, there, middle } = crossing;
    const [code, other] = [1, 8];
    middle.meddler = useTwice(code, other);
    const journey = new Journey(crossing, 'swapped', await sevGuest(here));
    await expect.poll(async () => (await journey.seenBy(there))?.closed, { timeout: PATIENCE_MS }).toBe(true);
    expect(await journey.runsAt(PATIENCE_MS)).toEqual(['there']);
    await journey.end();
    const seen = await journey.seenBy(there);
    if (!seen?.received) throw new Error('nothing has arrived');
    const { vm, slots } = receivedGuest(there.process, seen.received);
    const uaddr = slots[0]?.userspace_addr ?? 0n;
    const plain = await there.process.memory.mmap({ length: 2 * PAGE });
    for (const [index, page] of [code, other].entries())
      await vm.sev.dbgDecrypt({ src_uaddr: uaddr + BigInt(page * PAGE), dst_uaddr: plain + BigInt(index * PAGE), len: PAGE });
    const [first, second] = [
      await there.process.memory.read(plain, PAGE),
      await there.process.memory.read(plain + BigInt(PAGE), PAGE),
    ];
    expect(first.some((byte) => byte !== 0)).toBe(true);
    expect(second).toEqual(first);
    const { findings } = await there.host.listFindings();
    expect(findings.map(({ kind }) => kind)).toEqual(['PACKET_REPEATED']);
  });
});
