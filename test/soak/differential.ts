import { release } from 'node:os';
import { performance } from 'node:perf_hooks';
import { spawnOnDaemon } from '../conformance/backend-grpc.js';
import { Executor } from '../conformance/executor.js';
import { type GrpcHost, startGrpcHost } from '../conformance/grpc-host.js';
import { GUEST_EXPLANATIONS } from '../differential/guest-code/explained.js';
import { runGuestCode } from '../differential/run-guest-code.js';
import { runSequences } from '../differential/run-sequences.js';
import type { StartTested } from '../differential/sequences/compare.js';
import { EXPLANATIONS, INJECTION_PENDING } from '../differential/sequences/explained.js';
import { countsTable, findingsText, type SoakOptions, type SoakReport } from './report.js';

const MS_PER_MINUTE = 60_000;
const DIFFERENCES_MAX = 20;

/** A process of a daemon that lives as long as the soak. */
const startOverGrpc =
  (host: GrpcHost): StartTested =>
  async () => {
    const remote = await spawnOnDaemon(host.address);
    const finish = async (): Promise<string[]> => {
      await remote.close();
      return [];
    };
    return { executor: await Executor.create(remote.calls), finish };
  };

const reasons = (explained: ReadonlyMap<string, number>): string =>
  [...EXPLANATIONS, INJECTION_PENDING, ...GUEST_EXPLANATIONS]
    .filter(({ name }) => explained.has(name))
    .map(({ name, reason }) => `- \`${name}\`: ${reason}`)
    .join('\n');

/** Half of the time for sequences of calls, one in a hundred through gRPC, and half for guest code. */
export const differentialSoak = async ({ seed, count, cases, minutes, lanes }: SoakOptions): Promise<SoakReport> => {
  const begin = performance.now();
  const deadline = (share: number): number => begin + minutes * share * MS_PER_MINUTE;
  const grpc = await startGrpcHost();
  const found = (difference: string): void => void process.stderr.write(`${difference}\n`);
  const common = { seed, lanes, differencesMax: DIFFERENCES_MAX, found };
  const sequences = await runSequences({ ...common, count, deadline: deadline(0.5), startHundredth: startOverGrpc(grpc) });
  grpc.close();
  const guest = await runGuestCode({ ...common, count: cases, deadline: deadline(1) });
  const differences = [...sequences.differences, ...guest.differences];
  const text = [
    '# Differential soak',
    '',
    `Seed ${seed}, Linux ${release()}, ${Math.round((performance.now() - begin) / 1000)} s: ` +
      `${sequences.sequences} sequences of ${sequences.steps} calls, ${guest.cases} cases of guest code.`,
    `Differences without an explanation: ${differences.length}.`,
    '',
    findingsText(differences),
    '## Sequences',
    '',
    countsTable('explained', sequences.explained),
    '## Guest code',
    '',
    countsTable('the same exit on both', guest.exits),
    countsTable('explained', guest.explained),
    '## Reasons',
    '',
    reasons(new Map([...sequences.explained, ...guest.explained])),
    '',
  ].join('\n');
  return { text, passed: differences.length === 0 };
};
