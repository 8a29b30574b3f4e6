import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { POST_MOVE_POLICIES, type PostMovePolicyName, SimKvm } from '../../client/index.js';
import type { Row } from '../../client/lab/experiment.js';
import { DEFAULT_LAB, type LabReport, renderReport, runLab } from '../../client/lab/index.js';
import { totalOf } from '../../client/lab/measure.js';
import { startTestDaemon, type TestDaemon } from '../helpers/daemon.js';

/** The whole lab on two daemons: what is asserted are properties of what it saw, not the table itself. */

const daemons: TestDaemon[] = [];
const hosts: SimKvm[] = [];
let report: LabReport;

beforeAll(async () => {
  for (let host = 0; host < 2; host++) {
    const daemon = await startTestDaemon('--log-level', 'error');
    daemons.push(daemon);
    hosts.push(await SimKvm.connect(daemon.address));
  }
  report = await runLab(hosts, { ...DEFAULT_LAB, memoryBytes: 8 * 2 ** 20 }, () => {});
});

afterAll(async () => {
  for (const simkvm of hosts) await simkvm[Symbol.asyncDispose]();
  for (const daemon of daemons) await daemon[Symbol.asyncDispose]();
});

const moved = (tolerant: boolean): readonly Row[] =>
  report.rows.filter(({ subject }) => subject.kind === 'move' && subject.tolerant === tolerant);
const policyOf = ({ subject }: Row): string => (subject.kind === 'move' ? subject.policy : subject.kind);
const controls = (): readonly Row[] => report.rows.filter(({ subject }) => subject.kind !== 'move');
const failures = ({ teardown }: Row) => (teardown?.calls ?? []).filter(({ errno }) => errno !== null);

describe('what the lab sees of a policy', () => {
  /** Everything that may tell policies apart: errnos, bytes held, simulated time, findings, and whether the guest lives. */
  const fingerprint = (policy: PostMovePolicyName): string =>
    JSON.stringify([
      report.rows
        .filter((row) => policyOf(row) === policy)
        .map(({ held, move, teardown, findings }) => [
          held.map(({ reachable, charged }) => [totalOf(reachable), totalOf(charged)]),
          move?.blackoutNs,
          teardown?.calls,
          findings.map(({ kind }) => kind),
        ]),
      report.probes
        .filter((probe) => probe.policy === policy)
        .map(({ calls, guestAnswers, findings }) => [calls, guestAnswers, findings.map(({ kind }) => kind)]),
      Object.values(report.matrix).map((rows) => rows.map(({ answers }) => answers[policy])),
    ]);

  it('tells any two policies apart', () => {
    const seen = new Map(POST_MOVE_POLICIES.map((policy) => [fingerprint(policy), policy]));
    expect([...seen.values()]).toEqual([...POST_MOVE_POLICIES]);
  });

  it('has both kinds of guests, every policy, with and without the wrapper, and two control rows', () => {
    for (const encryption of ['SEV', 'SEV-ES'])
      for (const tolerant of [false, true])
        expect(
          moved(tolerant)
            .filter(({ options }) => options.encryption === encryption)
            .map(policyOf),
        ).toEqual([...POST_MOVE_POLICIES]);
    expect(controls()).toHaveLength(4);
  });

  it('launches what the guest’s owner expects', () => {
    for (const { launch } of [...report.rows, ...report.variants])
      expect(launch).toMatchObject({ asExpected: true, measurementVerifies: true });
    expect(new Set(report.rows.map(({ launch }) => launch.digest)).size).toBe(2);
  });
});

describe('the control rows', () => {
  it('have no finding, no failure, and leave nothing', () => {
    for (const row of controls()) {
      expect(row.findings).toEqual([]);
      expect(failures(row)).toEqual([]);
      expect(totalOf(row.held.at(-1)?.reachable ?? { none: 1 })).toBe(0);
    }
  });
});

describe('the guest that moves', () => {
  it('goes on: each completion reaches it exactly once, and it rings its doorbells at the destination', () => {
    for (const row of [...moved(false), ...moved(true)]) {
      expect(row.move?.errno).toBeNull();
      expect(row.guestEnd).toEqual([]);
      for (const { signalled, delivered } of row.queues) expect(delivered).toBe(signalled);
      for (const rung of Object.values(row.rungAtDestination)) expect(rung).toBeGreaterThan(0);
    }
  });

  it('suffers nothing from a teardown that keeps to what a VMM does', () => {
    for (const row of [...moved(false), ...moved(true)]) expect(row.findings).toEqual([]);
  });

  it('gets every completion too where the source gives its irqfds back first', () => {
    const rows = report.variants.filter(({ options }) => options.irqfdOrder === 'source-deassigns-first');
    expect(rows).not.toEqual([]);
    for (const { queues, findings } of rows) {
      expect(queues.map(({ delivered }) => delivered)).toEqual(queues.map(({ signalled }) => signalled));
      expect(findings).toEqual([]);
    }
  });

  it('loses completions where the source keeps its irqfds, and the ledger says so', () => {
    const rows = report.variants.filter(({ options }) => options.irqfdOrder === 'source-never-deassigns');
    expect(rows).not.toEqual([]);
    for (const { queues, failedCalls, findings } of rows) {
      const lost = queues.reduce((sum, { signalled, delivered }) => sum + signalled - delivered, 0);
      expect(lost).toBeGreaterThan(0);
      expect(findings.find(({ kind }) => kind === 'INTERRUPT_LOST')).toMatchObject({ domain: 'guest', count: lost });
      expect(failedCalls.map(({ errno }) => errno)).toContain('EBUSY');
    }
  });

  it('is lost with private memory, and in a VM that still waits for its initialization', () => {
    const rows = report.variants.filter(({ options }) => options.backing !== 'shared-memfd' || options.vmType === 'SEV');
    expect(rows).toHaveLength(4);
    for (const { move, guestEnd } of rows) {
      expect(move?.errno).toBeNull();
      expect(guestEnd).not.toEqual([]);
    }
  });
});

describe('the teardown of the source', () => {
  it('ends at the first error that the VMM does not know', () => {
    for (const row of moved(false)) expect(row.teardown?.finished).toBe(failures(row).length === 0);
    expect(moved(false).some((row) => row.teardown?.finished === false)).toBe(true);
    expect(moved(false).some((row) => row.teardown?.finished === true)).toBe(true);
  });

  it('finishes with the wrapper, which has swallowed something exactly where it did not finish without', () => {
    for (const row of moved(true)) {
      const without = moved(false).find(
        (other) => policyOf(other) === policyOf(row) && other.options.encryption === row.options.encryption,
      );
      expect(row.teardown?.finished).toBe(true);
      expect(totalOf(row.teardown?.swallowed ?? {}) > 0).toBe(without?.teardown?.finished === false);
    }
  });

  it('leaves nothing once everything is closed', async () => {
    for (const { held } of report.rows) expect(totalOf(held.at(-1)?.reachable ?? { none: 1 })).toBe(0);
    for (const { host } of hosts) expect(await host.listVms()).toEqual([]);
  });
});

describe('the blackout', () => {
  it('is what the cost model gives for its counts', () => {
    for (const { move } of moved(false)) {
      const { blackout = {}, work, blackoutNs } = move ?? {};
      const sum = Object.entries(blackout).reduce((ns, [name, count]) => ns + count * (work?.nanosecondsEach[name] ?? 0), 0);
      expect(sum).toBe(blackoutNs);
    }
  });

  it('is followed by work in the background under one policy only', () => {
    const later = moved(false).filter(({ move }) => (move?.work.nanoseconds ?? 0) > (move?.blackoutNs ?? 0));
    expect(new Set(later.map(policyOf)).size).toBe(1);
  });

  it('ranks every policy, whatever single costs are', () => {
    for (const ranking of Object.values(report.ranking)) {
      expect(new Set(ranking.order.map(({ policy }) => policy))).toEqual(new Set(POST_MOVE_POLICIES));
      expect(ranking.overturnedBy).toEqual([]);
    }
  });
});

describe('the matrix of ioctls', () => {
  it('has an answer for every call under every policy, and none before the move that only a dead VM gives', () => {
    const [rows = []] = Object.values(report.matrix);
    expect(rows.length).toBeGreaterThan(100);
    for (const { answers } of rows) {
      expect(Object.keys(answers)).toEqual(['not moved', ...POST_MOVE_POLICIES]);
      expect(Object.values(answers).every((answer) => /^(0|E[A-Z0-9]+)$/.test(answer))).toBe(true);
      expect(answers['not moved']).not.toBe('EIO');
    }
  });
});

describe('the printed report', () => {
  it('names every policy, probe and ioctl', () => {
    const text = renderReport(report);
    for (const name of [...POST_MOVE_POLICIES, ...report.probes.map(({ probe }) => probe)]) expect(text).toContain(name);
  });
});
