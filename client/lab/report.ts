import { bytes, table } from '../cli/output.js';
import type { Row, Subject } from './experiment.js';
import type { MatrixRow } from './ioctl-matrix.js';
import type { LabReport } from './lab.js';
import { type FindingCount, type Held, totalOf } from './measure.js';
import type { ProbeResult } from './probes.js';
import type { Ranking } from './ranking.js';

/** The lab's report for people. Nothing is added here to what was observed. */

const subjectName = (subject: Subject): string => {
  switch (subject.kind) {
    case 'move':
      return subject.policy;
    case 'teardown-without-move':
      return '(teardown, no move)';
    case 'close-only':
      return '(close only)';
  }
};

const wrapperOf = (subject: Subject): string => (subject.kind === 'move' && subject.tolerant ? 'yes' : '');

const microseconds = (ns: number): string => `${(ns / 1_000).toFixed(1)} us`;

const moveOf = ({ move }: Row): string => {
  if (move === null) return '';
  return move.errno ?? microseconds(move.blackoutNs);
};

const teardownOf = ({ teardown }: Row): string => {
  if (teardown === null) return 'closed';
  if (teardown.finished) return 'finished';
  const last = teardown.calls.at(-1);
  return `aborted: ${last?.call.replace(/ \(.*/, '')} ${last?.errno}`;
};

const swallowedOf = ({ teardown }: Row): number => totalOf(teardown?.swallowed ?? {});

const heldAt = ({ held }: Row, point: string, column: 'reachable' | 'charged'): string => {
  const sample = held.find((candidate) => candidate.point === point);
  return sample === undefined ? '' : bytes(totalOf(sample[column]));
};

const guestOf = ({ queues, guestEnd }: Row): string => {
  if (queues.length === 0) return 'not run';
  const counts = queues.map(({ delivered, signalled }) => `${delivered}/${signalled}`).join(' ');
  const ends = guestEnd.map((end) => (end.kind === 'errno' ? end.errno : end.kind === 'exit' ? end.reason : ''));
  return ends.length === 0 ? counts : `${counts}, KVM_RUN ${[...new Set(ends)].join(', ')}`;
};

const findingsOf = (findings: readonly FindingCount[]): string =>
  findings.map(({ domain, kind, count }) => `${domain} ${kind}${count > 1 ? ` x${count}` : ''}`).join(', ');

const experiment = (rows: readonly Row[]): string =>
  table(
    [
      'GUEST',
      'POLICY',
      'WRAPPER',
      'BLACKOUT',
      'TEARDOWN',
      'EIO',
      'RUNNING',
      'AFTER MOVE',
      'UNPLUG',
      'SLOTS',
      'CLOSE',
      'IRQS',
      'FINDINGS',
    ],
    rows.map((row) => [
      row.options.encryption,
      subjectName(row.subject),
      wrapperOf(row.subject),
      moveOf(row),
      teardownOf(row),
      swallowedOf(row),
      ...['running', 'after move', 'after unplug', 'after memslots', 'after close'].map((point) =>
        heldAt(row, point, 'reachable'),
      ),
      guestOf(row),
      findingsOf(row.findings),
    ]),
  );

const setup = ({ options }: Row): string => {
  if (options.vmType === 'SEV') return 'VM type SEV';
  if (options.backing === 'private-anonymous') return 'private memory';
  return options.irqfdOrder;
};

const variants = (rows: readonly Row[]): string =>
  table(
    ['GUEST', 'VARIANT', 'POLICY', 'MOVE', 'TEARDOWN', 'IRQS', 'FAILED CALLS', 'FINDINGS'],
    rows.map((row) => [
      row.options.encryption,
      setup(row),
      subjectName(row.subject),
      moveOf(row),
      teardownOf(row),
      guestOf(row),
      [...new Set(row.failedCalls.map(({ call, errno }) => `${call.replace(/ \(.*/, '')} ${errno}`))].join(', '),
      findingsOf(row.findings),
    ]),
  );

/** Puts together what has the same text. */
const grouped = <T>(items: readonly T[], textOf: (item: T) => string): ReadonlyMap<string, readonly T[]> => {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const text = textOf(item);
    groups.set(text, [...(groups.get(text) ?? []), item]);
  }
  return groups;
};

const memory = (held: readonly Held[]): string => {
  const types = [
    ...new Set(held.flatMap(({ reachable, charged }) => [...Object.keys(reachable), ...Object.keys(charged)])),
  ].sort();
  return table(
    ['TYPE', ...held.map(({ point }) => point.toUpperCase())],
    types.map((type) => [type, ...held.map(({ reachable, charged }) => `${reachable[type] ?? 0} / ${charged[type] ?? 0}`)]),
  );
};

const memoryByType = (rows: readonly Row[]): string =>
  [...grouped(rows, ({ held, options }) => `${options.encryption}\n${memory(held)}`)]
    .map(([text, members]) => {
      const [encryption, ...lines] = text.split('\n');
      const names = [
        ...new Set(members.map(({ subject }) => `${subjectName(subject)}${wrapperOf(subject) ? ' (wrapper)' : ''}`)),
      ];
      return `${encryption}: ${names.join(', ')}\n${lines.join('\n')}`;
    })
    .join('\n\n');

const blackout = (rows: readonly Row[]): string =>
  table(
    ['GUEST', 'POLICY', 'BLACKOUT', 'MADE OF', 'IN THE BACKGROUND'],
    rows.flatMap(({ options, subject, move }) => {
      if (move === null || subject.kind !== 'move' || subject.tolerant) return [];
      const later = Object.entries(move.work.counts).map(([name, count]) => [name, count - (move.blackout[name] ?? 0)] as const);
      const counts = (pairs: readonly (readonly [string, number])[]): string =>
        pairs
          .filter(([, count]) => count > 0)
          .map(([name, count]) => `${count} ${name}`)
          .join(', ');
      return [
        [options.encryption, subject.policy, microseconds(move.blackoutNs), counts(Object.entries(move.blackout)), counts(later)],
      ];
    }),
  );

const ranking = (encryption: string, { order, overturnedBy }: Ranking): string => {
  const line = order.map(({ policy, blackoutNs }) => `${policy} (${microseconds(blackoutNs)})`).join(', ');
  const holds =
    overturnedBy.length === 0
      ? 'holds with every cost halved and doubled'
      : `changes with ${overturnedBy.map(({ primitive, factor }) => `${primitive} x${factor}`).join(', ')}`;
  return `${encryption}, shortest blackout first: ${line}: ${holds}`;
};

const probeOutcome = ({ calls, guestAnswers }: ProbeResult): string =>
  `${calls.map(({ call, outcome }) => `${call} ${outcome}`).join('; ')}${guestAnswers ? '' : '; THE GUEST DOES NOT ANSWER'}`;

const probes = (results: readonly ProbeResult[]): string =>
  [...grouped(results, ({ encryption, when, probe }) => `${encryption}, ${when}: ${probe}`)]
    .map(([title, members]) => {
      const lines = [...grouped(members, (result) => `${probeOutcome(result)}\n${findingsOf(result.findings)}`)].map(
        ([text, same]) => {
          const [outcome, findings] = text.split('\n');
          return `  ${same.map(({ policy }) => policy).join(', ')}\n    ${outcome}${findings === '' ? '' : `\n    FINDING: ${findings}`}`;
        },
      );
      return [title, ...lines].join('\n');
    })
    .join('\n');

const matrix = (rows: readonly MatrixRow[]): string => {
  const columns = Object.keys(rows[0]?.answers ?? {});
  return table(
    ['IOCTL', ...columns],
    rows.map(({ ioctl, answers }) => [ioctl, ...Object.values(answers)]),
  );
};

const explanations = ({ rows, variants: other, probes: probed }: LabReport): string => {
  const all = [...rows, ...other, ...probed].flatMap(({ findings }) => findings);
  return [...new Map(all.map((finding) => [finding.kind, finding])).values()]
    .map(({ domain, kind, message, call }) => `${domain} ${kind}: ${message} (${call})`)
    .join('\n');
};

const section = (title: string, text: string): string[] => (text === '' ? [] : [`\n${title}\n${'='.repeat(title.length)}`, text]);

/** Whether every guest was launched as its owner expects. */
export const launchesVerify = ({ rows, variants: other }: LabReport): boolean =>
  [...rows, ...other].every(({ launch }) => launch.asExpected && launch.measurementVerifies);

/** What the guests' owners say of the launches. */
const launchVerdict = ({ rows, variants: other }: LabReport): string => {
  const launches = [...rows, ...other].map(({ launch }) => launch);
  const unexpected = launches.filter(({ asExpected }) => !asExpected).length;
  const unverified = launches.filter(({ measurementVerifies }) => !measurementVerifies).length;
  const digests = unexpected === 0 ? 'every launch digest is as expected' : `${unexpected} LAUNCH DIGESTS ARE NOT AS EXPECTED`;
  const measurements =
    unverified === 0
      ? 'every measurement verifies with the TIK of its owner’s session'
      : `${unverified} MEASUREMENTS DO NOT VERIFY WITH THE TIK OF THE OWNER’S SESSION`;
  return `${launches.length} launches: ${digests}, ${measurements}`;
};

/** The whole report. */
export const renderReport = (report: LabReport): string => {
  const { rows, variants: other, probes: probed, matrix: matrices, ranking: rankings } = report;
  const [first] = rows;
  return [
    `Guest: ${[...new Set(rows.map(({ options }) => options.image))].join('; ')}; ${bytes(first?.options.memoryBytes ?? 0)}, 2 vCPUs; ${launchVerdict(report)}.`,
    ...section('A guest moves away, and its VMM tears the source down', experiment(rows)),
    ...section('Blackout', blackout(rows)),
    ...Object.entries(rankings).map(([encryption, entry]) => ranking(encryption, entry)),
    ...section('Kernel memory held for the source VM, bytes: reachable from it / charged to it', memoryByType(rows)),
    ...section('Variants', other.length === 0 ? '' : variants(other)),
    ...section('Probes', probes(probed)),
    ...Object.entries(matrices).flatMap(([encryption, entry]) =>
      section(`Every ioctl on the source of a move, ${encryption}`, matrix(entry)),
    ),
    ...section('Findings', explanations(report)),
  ].join('\n');
};
