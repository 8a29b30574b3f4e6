import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { progressLines, renderMigration, renderMigrations, summary } from '../../../../client/cli/migration-view.js';
import { terminalStatusLine } from '../../../../client/cli/status-line.js';
import {
  Migration,
  MigrationHalf,
  type MigrationInit,
  MigrationProgress,
  type MigrationProgressInit,
  MigrationStanding,
} from '../../../../gen/messages.js';

const progressOf = (init: MigrationProgressInit): MigrationProgress =>
  MigrationProgress.decode(MigrationProgress.encode(init).finish());

const migrationOf = (init: MigrationInit): Migration =>
  Migration.decode(
    Migration.encode({
      session: '7f3a',
      half: MigrationHalf.MIGRATION_HALF_SOURCE,
      standing: MigrationStanding.MIGRATION_STANDING_IN_DOUBT,
      phase: 'committing',
      peer: '0123456789abcdef'.repeat(4),
      connected: true,
      ...init,
    }).finish(),
  );

/** As a wide terminal has it. */
const progressLine = (migration: Migration): string => progressLines(migration)[0] ?? '';

describe('the line of a migration that is under way', () => {
  it('has round, pages, speed, dirty rate and expected downtime', () => {
    const progress = {
      round: 2,
      pages_sent: 300,
      pages_left: 100,
      bytes_per_second: 210.3e6,
      dirty_pages_per_second: 12_345,
      expected_downtime_ms: 12.4,
    };
    expect(progressLine(migrationOf({ phase: 'copying', progress }))).toBe(
      'copying [##################------]  75 %  round 2  300 pages sent, 100 left  210.3 MB/s  dirty 12,345 pages/s  downtime 12 ms',
    );
  });

  it('fits into a terminal of 80 columns, with the same in it', () => {
    const progress = {
      round: 2,
      pages_sent: 30_000,
      pages_left: 10_000,
      bytes_per_second: 210.3e6,
      dirty_pages_per_second: 12_345,
      expected_downtime_ms: 12.4,
    };
    expect(progressLines(migrationOf({ phase: 'copying', progress })).map((line) => [line.length < 80, line])).toEqual([
      [false, expect.stringMatching(/^copying \[##########/)],
      [false, expect.stringMatching(/^copying \[########--\] 75 %/)],
      [true, 'copying 75 %  r2  30000 sent, 10000 left  210 MB/s  dirty 12,345/s  down 12 ms'],
    ]);
  });

  it('says what the migration waits for', () => {
    const waiting = migrationOf({ phase: 'stopping', waits_for: 'the VMM', connected: false, progress: {} });
    expect(progressLine(waiting)).toBe('stopping: waits for the VMM  not connected');
  });

  it('says that the vCPUs are slowed down, and that the link is lost', () => {
    expect(progressLine(migrationOf({ connected: false, progress: { throttle_percent: 40 } }))).toMatch(
      /throttled 40 % {2}not connected$/,
    );
  });

  it('foresees no downtime while nothing has arrived', () => {
    expect(progressLine(migrationOf({ progress: { expected_downtime_ms: Number.POSITIVE_INFINITY } }))).toMatch(
      /downtime unknown$/,
    );
  });

  it('says of a guest that has gone before its memory what is owed, and what somebody waited for', () => {
    const progress = { pages_sent: 75, pages_left: 25, faults_served: 7, bytes_per_second: 2e6, downtime_ms: 3.6, round: 2 };
    expect(progressLine(migrationOf({ phase: 'serving', progress }))).toBe(
      'serving [##################------]  25 pages owed  7 wanted and sent first  2.0 MB/s  stopped for 4 ms',
    );
    expect(progressLine(migrationOf({ phase: 'fetching', progress, connected: false }))).toBe(
      'fetching [##################------]  25 pages owed  7 waited for  not connected',
    );
  });

  it('is there before anything has been sent', () => {
    expect(progressLine(migrationOf({ phase: 'negotiating', progress: {} }))).toContain(
      'negotiating [------------------------]   0 %',
    );
  });
});

describe('the last line of a terminal', () => {
  const written = (columns: number | undefined, forms: readonly string[]): string => {
    const stream = Object.assign(new PassThrough(), { isTTY: true, columns });
    terminalStatusLine(stream)?.show(forms);
    return String(stream.read()).slice('\r\u001b[2K'.length);
  };
  const FORMS = ['a'.repeat(100), 'b'.repeat(50), 'c'.repeat(20)];

  it('shows the first form that fits, or what fits of the last', () => {
    expect([200, 100, undefined, 10].map((columns) => written(columns, FORMS))).toEqual([
      'a'.repeat(100),
      'b'.repeat(50),
      'b'.repeat(50),
      'c'.repeat(9),
    ]);
  });

  it('is not there where nobody looks', () => {
    expect(terminalStatusLine(Object.assign(new PassThrough(), { isTTY: false }))).toBeNull();
  });
});

describe('sessions in a table', () => {
  it('have a line each, which says who is in doubt', () => {
    const text = renderMigrations([migrationOf({ progress: { round: 3 } }), migrationOf({ session: 'b', connected: false })]);
    expect(text).toMatch(/^7f3a +source +in-doubt +committing +3 +0 +0 +0123456789ab +open/m);
    expect(text).toMatch(/^b .* lost/m);
  });

  it('are none', () => {
    expect(renderMigrations([])).toBe('no migrations');
  });
});

describe('one session', () => {
  it('shows what has arrived, and the wiring that is to be made again', () => {
    const received = {
      vm_fd: 4,
      vcpu_fds: [5, 6],
      slots: [{ id: 1, guest_phys_addr: 0x10_0000, memory_size: 0x4000, userspace_addr: 0x7000 }],
      ioeventfds: [{ address: 0xfe00_1000, length: 4, count: 2 }],
      irqfds: [{ gsi: 5, resample: true }],
    };
    const text = renderMigration(migrationOf({ received, reason: 'CANCELLED' }));
    expect(text).toMatch(/^reason +CANCELLED$/m);
    expect(text).toMatch(/^vCPUs +fd 5, fd 6$/m);
    expect(text).toMatch(/^ *1 +0x100000 +16.0 KiB +0x7000$/m);
    expect(text).toMatch(/^mmio +0xfe001000 +4 +any +2$/m);
    expect(text).toMatch(/^ *5 +yes +0$/m);
  });
});

it('of a destination there is nothing to tell but what has arrived', () => {
  const half = MigrationHalf.MIGRATION_HALF_DESTINATION;
  const text = renderMigration(migrationOf({ half, progress: { pages_sent: 16_384, pages_left: 3, faults_served: 2 } }));
  expect(text).toMatch(/^pages received +16384$/m);
  expect(text).toMatch(/^pages missing +3$/m);
  expect(text).toMatch(/^waited for +2 pages$/m);
  expect(text).not.toMatch(/round|downtime/);
});

it('what a move came to says how long the guest was stopped', () => {
  const progress = progressOf({ round: 2, pages_sent: 512, bytes_sent: 2_200_000, downtime_ms: 8.25 });
  expect(summary('7f3a', progress)).toBe(
    'moved in session 7f3a: 512 pages in 2 rounds (2.0 MiB of memory, 2.1 MiB on the wire), stopped for 8.3 ms',
  );
});
