import { Authority } from '../certificates.js';
import { BarePeers } from './bare-peers.js';
import type { FetchRequest } from './bare-stream-contract.js';
import { bundleServer } from './child-server.js';
import { alternate, type Figure } from './figure.js';
import type { GuestName } from './migration-guests.js';
import { BenchHosts } from './migration-hosts.js';
import { QemuMigration, qemuVersion } from './qemu.js';

/** Pages of a message, as the daemons send them. */
const MESSAGE_BYTES = 2 ** 20;
/** The window of a daemon that pulls. */
const WINDOW_BYTES = 8 * 2 ** 20;
const ROUNDS = 5;
/** A cipher for each page makes a guest of SEV slower, so that it may be smaller. */
const MIB = { plain: 128, SEV: 32, 'SEV-ES': 32 } as const;
const QEMU_MIB = 256;
const QEMU_ROUNDS = 3;
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

const rate = (value: number): string => `${value.toFixed(0)} MB/s`;

const againstBareStream = async (program: string, authority: Authority, each: Case): Promise<Figure> => {
  const { guest, sealed, tls, work, target } = each;
  const link = tls ? authority : null;
  await using bare = await BarePeers.start(program, link);
  await using hosts = await BenchHosts.start({ sealed, authority: link }, guest, MIB[guest]);
  const request = { bytes: hosts.bytes, messageBytes: MESSAGE_BYTES, window: WINDOW_BYTES, work };
  const pair = await alternate(
    ROUNDS,
    async () => hosts.bytes / MEGABYTE / (await hosts.move()).seconds,
    async () => hosts.bytes / MEGABYTE / (await bare.pull(request)),
  );
  return {
    name: `migration, ${guest} guest, ${linkName(each)}`,
    ours: rate(pair.ours),
    baseline: `${WORK_NAME[work]}, ${tls ? 'TLS' : 'TCP'}, ${rate(pair.baseline)}`,
    ratio: pair.ratio,
    target,
  };
};

const againstQemu = async (authority: Authority, version: string, link: Pick<Case, 'sealed' | 'tls'>): Promise<Figure> => {
  using qemu = new QemuMigration(authority, QEMU_MIB);
  await using hosts = await BenchHosts.start({ ...link, authority: link.tls ? authority : null }, 'plain', QEMU_MIB);
  const pair = await alternate(
    QEMU_ROUNDS,
    async () => hosts.bytes / MEGABYTE / (await hosts.move()).seconds,
    async () => hosts.bytes / MEGABYTE / (await qemu.move()),
  );
  return {
    name: `migration, plain guest, ${linkName(link)}`,
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
