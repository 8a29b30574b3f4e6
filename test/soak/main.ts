import { mkdirSync, writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { differentialSoak } from './differential.js';
import { fuzzSoak } from './fuzz.js';
import type { SoakOptions, SoakReport } from './report.js';

/** Long searches for what short test runs do not meet. Each writes a report to `test/soak/results/`. */
const SOAKS: Readonly<Record<string, (options: SoakOptions) => Promise<SoakReport>>> = {
  differential: differentialSoak,
  fuzz: fuzzSoak,
};

const RESULTS = 'test/soak/results';

const number = (text: string): number => Number(text);

const run = async (name: string, options: SoakOptions): Promise<void> => {
  const soak = SOAKS[name];
  if (soak === undefined) throw new Error(`no such soak: ${name}; there are ${Object.keys(SOAKS).join(', ')}`);
  const { text, passed } = await soak(options);
  mkdirSync(RESULTS, { recursive: true });
  writeFileSync(`${RESULTS}/${name}.md`, text);
  process.stdout.write(text);
  process.exitCode = passed ? 0 : 1;
};

const program = new Command('soak')
  .argument('<name>', Object.keys(SOAKS).join(' or '))
  .option('--seed <n>', 'where the seeds begin', number, 1)
  .option('--count <n>', 'sequences or worlds at most', number, 100_000)
  .option('--cases <n>', 'cases of guest code at most', number, 1_000_000)
  .option('--minutes <n>', 'stop after so long', number, 10)
  .option('--lanes <n>', 'how many at once', number, 3)
  .action(run);

await program.parseAsync();
