import { type Migration, MigrationHalf, type MigrationProgress, MigrationStanding } from '../../gen/messages.js';
import { bytes, fields, hex, table } from './output.js';

const PAGE_BYTES = 4096;
const BAR_WIDTH = 24;
/** Digits of a fingerprint that tell a few daemons apart. */
const FINGERPRINT_DIGITS = 12;

const word = (name: string | undefined, prefix: string): string => (name ?? 'unknown').replace(prefix, '').toLowerCase();

const standingName = ({ standing }: Migration): string =>
  word(MigrationStanding[standing], 'MIGRATION_STANDING_').replace('_', '-');
const halfName = ({ half }: Migration): string => word(MigrationHalf[half], 'MIGRATION_HALF_');

const whole = (value: number): string => Math.round(value).toLocaleString('en-US');

/** Nothing can be foreseen before anything has arrived. */
const milliseconds = (value: number): string => (Number.isFinite(value) ? `${whole(value)} ms` : 'unknown');

/** What of the pages that are known has been sent, from 0 to 1. */
const shareSent = ({ pages_sent, pages_left }: MigrationProgress): number => {
  const [sent, left] = [Number(pages_sent), Number(pages_left)];
  return sent + left === 0 ? 0 : sent / (sent + left);
};

const bar = (share: number): string => {
  const full = Math.round(share * BAR_WIDTH);
  return `[${'#'.repeat(full)}${'-'.repeat(BAR_WIDTH - full)}]`;
};

/** How far a migration is, in one line: what matters most comes first, for a narrow terminal cuts the rest. */
export const progressLine = (migration: Migration): string => {
  const { phase, progress, connected, waits_for } = migration;
  if (progress === null) return phase;
  const notConnected = connected ? [] : ['not connected'];
  const share = shareSent(progress);
  // The guest runs at the destination already.
  if (phase === 'serving' || phase === 'fetching') return [...postCopyParts(phase, progress), ...notConnected].join('  ');
  if (waits_for !== '') return [`${phase}: waits for ${waits_for}`, ...notConnected].join('  ');
  const parts = [
    `${phase} ${bar(share)} ${(share * 100).toFixed(0).padStart(3)} %`,
    `round ${progress.round}`,
    `${progress.pages_sent} pages sent, ${progress.pages_left} left`,
    `${(progress.bytes_per_second / 1e6).toFixed(1)} MB/s`,
    `dirty ${whole(progress.dirty_pages_per_second)} pages/s`,
    `downtime ${milliseconds(progress.downtime_ms || progress.expected_downtime_ms)}`,
  ];
  if (progress.throttle_percent > 0) parts.push(`throttled ${progress.throttle_percent} %`);
  return [...parts, ...notConnected].join('  ');
};

const postCopyParts = (phase: string, progress: MigrationProgress): string[] => [
  `${phase} ${bar(shareSent(progress))}`,
  `${progress.pages_left} pages owed`,
  `${progress.faults_served} ${phase === 'serving' ? 'wanted and sent first' : 'waited for'}`,
  ...(phase === 'serving'
    ? [`${(progress.bytes_per_second / 1e6).toFixed(1)} MB/s`, `stopped for ${milliseconds(progress.downtime_ms)}`]
    : []),
];

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
      ['speed', `${(progress.bytes_per_second / 1e6).toFixed(1)} MB/s`],
      ['dirty rate', `${whole(progress.dirty_pages_per_second)} pages/s`],
      ['downtime', `${milliseconds(progress.downtime_ms)}, expected ${milliseconds(progress.expected_downtime_ms)}`],
      ['throttled', `${progress.throttle_percent} %`],
      ['faults served', progress.faults_served],
    );
  return [fields(pairs), ...renderReceived(migration)].join('\n\n');
};
