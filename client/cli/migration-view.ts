import { type Migration, MigrationHalf, type MigrationProgress, MigrationStanding } from '../../gen/messages.js';
import { bytes, fields, hex, table } from './output.js';

const PAGE_BYTES = 4096;
const BAR_WIDTH = 24;
const SHORT_BAR_WIDTH = 10;
/** Digits of a fingerprint that tell a few daemons apart. */
const FINGERPRINT_DIGITS = 12;

const word = (name: string | undefined, prefix: string): string => (name ?? 'unknown').replace(prefix, '').toLowerCase();

const standingName = ({ standing }: Migration): string =>
  word(MigrationStanding[standing], 'MIGRATION_STANDING_').replace('_', '-');
const halfName = ({ half }: Migration): string =>
  half === MigrationHalf.MIGRATION_HALF_UNSPECIFIED ? 'unknown' : word(MigrationHalf[half], 'MIGRATION_HALF_');

const whole = (value: number): string => Math.round(value).toLocaleString('en-US');

/** Nothing can be foreseen before anything has arrived. */
const milliseconds = (value: number): string => (Number.isFinite(value) ? `${whole(value)} ms` : 'unknown');

/** What of the pages that are known has been sent, from 0 to 1. */
const shareSent = ({ pages_sent, pages_left }: MigrationProgress): number => {
  const [sent, left] = [Number(pages_sent), Number(pages_left)];
  return sent + left === 0 ? 0 : sent / (sent + left);
};

/** How much room a line has. */
interface Width {
  /** Characters of the bar; 0: there is none. */
  readonly bar: number;
  /** Words are left out that a person can do without. */
  readonly short: boolean;
}

const WIDTHS: readonly Width[] = [
  { bar: BAR_WIDTH, short: false },
  { bar: SHORT_BAR_WIDTH, short: true },
  { bar: 0, short: true },
];

const bar = (share: number, width: number): string => {
  const full = Math.round(share * width);
  return width === 0 ? '' : `[${'#'.repeat(full)}${'-'.repeat(width - full)}] `;
};

const speed = ({ bytes_per_second }: MigrationProgress, digits = 1): string => `${(bytes_per_second / 1e6).toFixed(digits)} MB/s`;

const copyParts = (phase: string, progress: MigrationProgress, { bar: width, short }: Width): string[] => {
  const { round, pages_sent, pages_left, dirty_pages_per_second, throttle_percent } = progress;
  const share = shareSent(progress);
  const downtime = milliseconds(progress.downtime_ms || progress.expected_downtime_ms);
  return [
    `${phase} ${bar(share, width)}${(share * 100).toFixed(0).padStart(short ? 0 : 3)} %`,
    short ? `r${round}` : `round ${round}`,
    short ? `${pages_sent} sent, ${pages_left} left` : `${pages_sent} pages sent, ${pages_left} left`,
    speed(progress, short ? 0 : 1),
    `dirty ${whole(dirty_pages_per_second)}${short ? '/s' : ' pages/s'}`,
    `${short ? 'down' : 'downtime'} ${downtime}`,
    ...(throttle_percent > 0 ? [`throttled ${throttle_percent} %`] : []),
  ];
};

/** The guest runs at the destination already. */
const postCopyParts = (phase: string, progress: MigrationProgress, { bar: width }: Width): string[] => [
  `${phase} ${bar(shareSent(progress), width)}`.trimEnd(),
  `${progress.pages_left} pages owed`,
  `${progress.faults_served} ${phase === 'serving' ? 'wanted and sent first' : 'waited for'}`,
  ...(phase === 'serving' ? [speed(progress), `stopped for ${milliseconds(progress.downtime_ms)}`] : []),
];

const partsOf = ({ phase, progress, waits_for }: Migration, width: Width): string[] => {
  if (progress === null) return [phase];
  if (phase === 'serving' || phase === 'fetching') return postCopyParts(phase, progress, width);
  return waits_for === '' ? copyParts(phase, progress, width) : [`${phase}: waits for ${waits_for}`];
};

/** How far a migration is, in one line: for wide terminals first, then for narrower ones. */
export const progressLines = (migration: Migration): readonly string[] =>
  WIDTHS.map((width) => [...partsOf(migration, width), ...(migration.connected ? [] : ['not connected'])].join('  '));

/** What a guest's move came to. */
export const summary = (session: string, { round, pages_sent, bytes_sent, downtime_ms }: MigrationProgress): string =>
  `moved in session ${session}: ${pages_sent} pages in ${round === 1 ? '1 round' : `${round} rounds`} (${bytes(pages_sent * BigInt(PAGE_BYTES))} of memory, ${bytes(bytes_sent)} on the wire), stopped for ${downtime_ms.toFixed(1)} ms`;

export const renderMigrations = (migrations: readonly Migration[]): string =>
  migrations.length === 0
    ? 'no migrations'
    : table(
        ['SESSION', 'HALF', 'STANDING', 'PHASE', 'ROUND', 'SENT', 'LEFT', 'PEER', 'LINK', 'REASON'],
        migrations.map((migration) => [
          migration.session,
          halfName(migration),
          standingName(migration),
          migration.phase,
          migration.progress?.round ?? 0,
          migration.progress?.pages_sent ?? 0,
          migration.progress?.pages_left ?? 0,
          migration.peer.slice(0, FINGERPRINT_DIGITS),
          migration.closed ? 'closed' : migration.connected ? 'open' : 'lost',
          migration.reason,
        ]),
      );

const renderReceived = ({ received }: Migration): string[] => {
  if (received === null) return [];
  const { vm_fd, vcpu_fds, other_fds, slots, ioeventfds, irqfds } = received;
  const sections = [
    fields([
      ['VM', `fd ${vm_fd}`],
      ['vCPUs', vcpu_fds.map((fd) => `fd ${fd}`).join(', ')],
      ...(other_fds.length === 0 ? [] : ([['/dev/sev', `fd ${other_fds.join(', ')}`]] as const)),
    ]),
    table(
      ['SLOT', 'GUEST PHYSICAL', 'SIZE', 'USERSPACE'],
      slots.map((slot) => [slot.id, hex(slot.guest_phys_addr), bytes(slot.memory_size), hex(slot.userspace_addr)]),
    ),
  ];
  if (ioeventfds.length > 0)
    sections.push(
      table(
        ['IOEVENTFD', 'ADDRESS', 'LENGTH', 'DATAMATCH', 'COUNT'],
        ioeventfds.map(({ pio, address, length, datamatch, count }) => [
          pio ? 'pio' : 'mmio',
          hex(address),
          length,
          datamatch === null ? 'any' : hex(datamatch),
          count,
        ]),
      ),
    );
  if (irqfds.length > 0)
    sections.push(
      table(
        ['IRQFD GSI', 'RESAMPLE', 'COUNT'],
        irqfds.map(({ gsi, resample, count }) => [gsi, resample ? 'yes' : 'no', count]),
      ),
    );
  return sections;
};

/** All that is known of one session. */
export const renderMigration = (migration: Migration): string => {
  const { session, phase, reason, detail, waits_for, connected, peer, closed, progress } = migration;
  const pairs: [string, string | number | bigint | boolean][] = [
    ['session', session],
    ['half', halfName(migration)],
    ['standing', `${standingName(migration)} (${phase})`],
    ['peer', peer === '' ? 'not known yet' : peer],
    ['link', closed ? 'closed: both sides know' : connected ? 'open' : 'lost'],
  ];
  if (reason !== '') pairs.push(['reason', reason]);
  if (detail !== '') pairs.push(['detail', detail]);
  if (waits_for !== '') pairs.push(['waits for', waits_for]);
  if (progress !== null && migration.half === MigrationHalf.MIGRATION_HALF_DESTINATION)
    pairs.push(
      ['pages received', progress.pages_sent],
      ['pages missing', progress.pages_left],
      ['waited for', `${progress.faults_served} pages`],
    );
  else if (progress !== null)
    pairs.push(
      ['round', progress.round],
      ['pages sent', progress.pages_sent],
      ['pages left', progress.pages_left],
      ['bytes sent', bytes(progress.bytes_sent)],
      ['speed', speed(progress)],
      ['dirty rate', `${whole(progress.dirty_pages_per_second)} pages/s`],
      ['downtime', `${milliseconds(progress.downtime_ms)}, expected ${milliseconds(progress.expected_downtime_ms)}`],
      ['throttled', `${progress.throttle_percent} %`],
      ['faults served', progress.faults_served],
    );
  return [fields(pairs), ...renderReceived(migration)].join('\n\n');
};
