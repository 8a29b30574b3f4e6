import { Authority } from '../certificates.js';
import { BarePeers } from './bare-peers.js';
import type { FetchRequest } from './bare-stream-contract.js';
import { bundleServer } from './child-server.js';
import { alternate, type Figure, type Pair } from './figure.js';
import type { GuestName } from './migration-guests.js';
import { BenchHosts, WARMING_HOPS, type Wiring } from './migration-hosts.js';
import { QemuMigration, qemuVersion } from './qemu.js';

/** Pages of a message, as the daemons send them. */
const MESSAGE_BYTES = 2 ** 20;
/** The window of a daemon that pulls. */
const WINDOW_BYTES = 8 * 2 ** 20;
const ROUNDS = 5;
/** Large enough for what a migration of any size takes to be little; a cipher for each page makes a guest of SEV slower, so that it may be smaller. */
const MIB = { plain: 512, SEV: 64, 'SEV-ES': 64 } as const;
/** What a migration of any size takes is measured with next to no memory. */
const SMALL_MIB = 1;
const SMALL_ROUNDS = 20;
const FIRST_MIB = 256;
const QEMU_MIB = 256;
const QEMU_ROUNDS = 9;
/** Pairs of new processes. */
const FIRST_ROUNDS = 3;
const MEGABYTE = 1e6;

interface Case {
  readonly guest: GuestName;
  readonly sealed: boolean;
  readonly tls: boolean;
  /** What the bare stream does with the bytes. */
  readonly work: FetchRequest['work'];
  readonly target: string;
}

/** Every guest over every kind of link; where the Targets table has another denominator, or none, the bare stream's is for comparison. */
const CASES: readonly Case[] = [
  { guest: 'plain', sealed: false, tls: false, work: 'none', target: 'at least 0.75' },
  { guest: 'plain', sealed: true, tls: false, work: 'seal', target: 'none set' },
  { guest: 'plain', sealed: false, tls: true, work: 'none', target: 'none set' },
  { guest: 'plain', sealed: true, tls: true, work: 'seal', target: 'none set' },
  { guest: 'SEV', sealed: false, tls: false, work: 'packets', target: 'at least 0.8' },
  { guest: 'SEV', sealed: true, tls: false, work: 'packets', target: 'none set' },
  { guest: 'SEV', sealed: false, tls: true, work: 'packets', target: 'none set' },
  { guest: 'SEV', sealed: true, tls: true, work: 'packets', target: 'none set' },
  { guest: 'SEV-ES', sealed: false, tls: false, work: 'packets', target: 'at least 0.8' },
  { guest: 'SEV-ES', sealed: true, tls: false, work: 'packets', target: 'none set' },
  { guest: 'SEV-ES', sealed: false, tls: true, work: 'packets', target: 'none set' },
  { guest: 'SEV-ES', sealed: true, tls: true, work: 'packets', target: 'none set' },
];

const WORK_NAME = {
  none: 'bare stream',
  seal: 'bare stream, GCM of messages',
  packets: 'bare stream, CTR and HMAC of pages',
} as const;

const linkName = ({ sealed, tls }: Pick<Case, 'sealed' | 'tls'>): string =>
  `${tls ? 'TLS' : 'TCP'}, ${sealed ? 'sealed' : 'unsealed'}`;

const SEALED: Wiring = { sealed: true, authority: null };

type PullRequest = Omit<FetchRequest, 'from'>;

const rate = (value: number): string => `${value.toFixed(0)} MB/s`;

const warmPeers = async (program: string, authority: Authority | null, request: PullRequest): Promise<BarePeers> => {
  const peers = await BarePeers.start(program, authority);
  for (let pull = 0; pull < WARMING_HOPS; pull++) await peers.pull(request);
  return peers;
};

const againstBareStream = async (program: string, authority: Authority, each: Case): Promise<Figure> => {
  const { guest, sealed, tls, work, target } = each;
  const link = tls ? authority : null;
  const request = { bytes: MIB[guest] * 2 ** 20, messageBytes: MESSAGE_BYTES, window: WINDOW_BYTES, work };
  await using bare = await warmPeers(program, link, request);
  await using hosts = await BenchHosts.startWarm({ sealed, authority: link }, guest, MIB[guest]);
  const pair = await alternate(
    ROUNDS,
    async () => hosts.bytes / MEGABYTE / (await hosts.move()).seconds,
    async () => hosts.bytes / MEGABYTE / (await bare.pull(request)),
  );
  return {
    name: `migration, ${guest} guest of ${MIB[guest]} MiB, ${linkName(each)}`,
    ours: rate(pair.ours),
    baseline: `${WORK_NAME[work]}, ${tls ? 'TLS' : 'TCP'}, ${rate(pair.baseline)}`,
    ratio: pair.ratio,
    target,
  };
};

/** What a migration takes before and after its memory: two daemons that dial, prove themselves, make a VM and hand it over. */
const fixedPart = async (program: string): Promise<Figure> => {
  const request = sealedPull(SMALL_MIB);
  await using bare = await warmPeers(program, null, request);
  await using hosts = await BenchHosts.startWarm(SEALED, 'plain', SMALL_MIB);
  const pair = await alternate(
    SMALL_ROUNDS,
    async () => 1000 * (await hosts.move()).seconds,
    async () => 1000 * (await bare.pull(request)),
  );
  return inMilliseconds(`migration, plain guest of ${SMALL_MIB} MiB`, pair);
};

/** What the first migration of two new daemons takes, which V8 has compiled nothing for. */
const firstMigration = async (program: string): Promise<Figure> => {
  const request = sealedPull(FIRST_MIB);
  const ours = async (): Promise<number> => {
    await using hosts = await BenchHosts.start(SEALED, 'plain', FIRST_MIB);
    return 1000 * (await hosts.move()).seconds;
  };
  const theirs = async (): Promise<number> => {
    await using bare = await BarePeers.start(program, null);
    return 1000 * (await bare.pull(request));
  };
  return inMilliseconds(
    `the first migration of new daemons, plain guest of ${FIRST_MIB} MiB`,
    await alternate(FIRST_ROUNDS, ours, theirs),
  );
};

const sealedPull = (mib: number): PullRequest => ({
  bytes: mib * 2 ** 20,
  messageBytes: MESSAGE_BYTES,
  window: WINDOW_BYTES,
  work: 'seal',
});

const inMilliseconds = (name: string, { ours, baseline, ratio }: Pair): Figure => ({
  name: `${name}, TCP, sealed: milliseconds`,
  ours: `${ours.toFixed(1)} ms`,
  baseline: `${WORK_NAME.seal}, TCP, ${baseline.toFixed(1)} ms`,
  ratio,
  target: 'none set',
});

const againstQemu = async (authority: Authority, version: string, link: Pick<Case, 'sealed' | 'tls'>): Promise<Figure> => {
  using qemu = new QemuMigration(authority, QEMU_MIB);
  await using hosts = await BenchHosts.startWarm({ ...link, authority: link.tls ? authority : null }, 'plain', QEMU_MIB);
  const pair = await alternate(
    QEMU_ROUNDS,
    async () => hosts.bytes / MEGABYTE / (await hosts.move()).seconds,
    async () => hosts.bytes / MEGABYTE / (await qemu.move()),
  );
  return {
    name: `migration, plain guest of ${QEMU_MIB} MiB, ${linkName(link)}`,
    ours: rate(pair.ours),
    baseline: `QEMU ${version}, TLS, ${rate(pair.baseline)}`,
    ratio: pair.ratio,
    target: 'at least 1.2',
  };
};

/** MB/s of guest memory from one daemon to another, from the call that begins it to the guest's running there. */
export const measureMigration = async (say: (what: string) => void): Promise<Figure[]> => {
  await using bareStream = await bundleServer('bare-stream');
  using authority = new Authority();
  const figures: Figure[] = [];
  for (const each of CASES) {
    say(`  ${each.guest} guest, ${linkName(each)}`);
    figures.push(await againstBareStream(bareStream.program, authority, each));
  }
  say(`  plain guest of ${SMALL_MIB} MiB`);
  figures.push(await fixedPart(bareStream.program));
  say('  the first migration of new daemons');
  figures.push(await firstMigration(bareStream.program));
  const version = await qemuVersion();
  if (version === null) say('  not compared with QEMU, which is not installed');
  else
    for (const link of [
      { sealed: false, tls: true },
      { sealed: true, tls: false },
    ]) {
      say(`  against QEMU ${version}, ${linkName(link)}`);
      figures.push(await againstQemu(authority, version, link));
    }
  return figures;
};
