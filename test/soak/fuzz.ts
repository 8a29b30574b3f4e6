import { performance } from 'node:perf_hooks';
import { Random } from '../differential/random.js';
import { shrinkList } from '../differential/shrink.js';
import { type FuzzCall, FuzzWorld, PROCESSES } from '../simulation/fuzz/world.js';
import { findingsText, type SoakOptions, type SoakReport } from './report.js';

const CALLS = 200;
const MS_PER_MINUTE = 60_000;
const FINDINGS_MAX = 10;

const callsOf = (seed: number): FuzzCall[] => {
  const random = new Random(seed);
  return Array.from({ length: CALLS }, () => ({
    process: random.below(PROCESSES),
    tier: random.pick(['typed', 'raw'] as const),
    seed: random.u32() >>> 1,
  }));
};

/** What a world finds at its end, or the exception that it ended with. */
const play = (calls: readonly FuzzCall[]): string[] => {
  try {
    const world = new FuzzWorld();
    for (const call of calls) world.call(call);
    return world.finish();
  } catch (error) {
    return [error instanceof Error ? (error.stack ?? error.message) : String(error)];
  }
};

const describe = async (seed: number): Promise<string> => {
  const small = await shrinkList(callsOf(seed), async (calls) => play(calls).length > 0);
  return [`seed ${seed}: ${JSON.stringify(small)}`, ...play(small)].join('\n');
};

/** Worlds of several processes that call whatever there is, each checked for what is left when all have exited. */
export const fuzzSoak = async ({ seed, count, minutes }: SoakOptions): Promise<SoakReport> => {
  const begin = performance.now();
  const findings: string[] = [];
  let worlds = 0;
  while (worlds < count && performance.now() - begin < minutes * MS_PER_MINUTE && findings.length < FINDINGS_MAX) {
    if (play(callsOf(seed + worlds)).length > 0) findings.push(await describe(seed + worlds));
    worlds++;
  }
  const seconds = Math.round((performance.now() - begin) / 1000);
  const text = [
    '# Fuzz soak',
    '',
    `Seed ${seed}: ${worlds} worlds of ${CALLS} calls by ${PROCESSES} processes over both tiers in ${seconds} s.`,
    `Worlds that threw, or left something behind: ${findings.length}.`,
    '',
    findingsText(findings),
  ].join('\n');
  return { text, passed: findings.length === 0 };
};
