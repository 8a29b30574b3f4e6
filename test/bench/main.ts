import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { Argument, Command } from 'commander';
import { table } from '../../client/cli/output.js';
import { bundleServer, startServer, startSimkvmd } from './child-server.js';
import { measureColdStart } from './cold-start.js';
import { measureCpu } from './cpu.js';
import type { Figure } from './figure.js';
import { measureInProcess } from './in-process.js';
import { measureKvmRun } from './kvm-run.js';
import { measureMemory } from './memory.js';
import { measureMemslots } from './memslots.js';
import { measureMigration } from './migration.js';
import { measureDowntime } from './migration-downtime.js';
import { measureSev } from './sev.js';
import { measureUnary } from './unary.js';

/*
 * `npm run bench`: each figure with its denominator, measured by turns in this run. Absolute figures say something about
 * this machine; the ratios are what targets are about. Nothing is asserted.
 */

const say = (what: string): void => void process.stderr.write(`${what} ...\n`);

const measureCalls = async (): Promise<Figure[]> => {
  await using echoServer = await bundleServer('echo-server');
  await using simkvmd = await startSimkvmd();
  await using echo = await startServer(echoServer.program);
  const unary = await measureUnary(simkvmd, echo);
  say('KVM_RUN');
  return [...unary, ...(await measureKvmRun(simkvmd, echo))];
};

const withEcho = async (measure: (program: string) => Promise<Figure[]>): Promise<Figure[]> => {
  await using echoServer = await bundleServer('echo-server');
  return await measure(echoServer.program);
};

/**
 * What is measured together. Each has a process to itself: whatever the one before has done to its heap, and to what V8 takes for
 * granted when it compiles, would be part of the figure.
 */
const PARTS: Readonly<Record<string, () => Promise<Figure[]> | Figure[]>> = {
  calls: measureCalls,
  cpu: measureCpu,
  'in-process': measureInProcess,
  memslots: measureMemslots,
  sev: measureSev,
  migration: () => measureMigration(say),
  downtime: measureDowntime,
  'cold-start': () => withEcho(measureColdStart),
  memory: () => withEcho(measureMemory),
};

const measureApart = async (part: string): Promise<Figure[]> => {
  say(part);
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), '--json', part], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [output, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')]);
  if (code !== 0) throw new Error(`${part} was not measured`);
  const figures: Figure[] = JSON.parse(output);
  return figures;
};

const row = ({ name, ours, baseline, ratio, target }: Figure): string[] => [name, ours, baseline, ratio.toFixed(2), target];

const measure = async (parts: readonly string[], { json = false }: { readonly json?: boolean }): Promise<void> => {
  const figures: Figure[] = [];
  for (const part of parts) figures.push(...(json ? ((await PARTS[part]?.()) ?? []) : await measureApart(part)));
  process.stdout.write(
    json ? JSON.stringify(figures) : `${table(['FIGURE', 'OURS', 'AGAINST', 'RATIO', 'TARGET'], figures.map(row))}\n`,
  );
};

const parts = new Argument('[parts...]', 'what to measure').choices(Object.keys(PARTS)).default(Object.keys(PARTS));
await new Command('bench').addArgument(parts).option('--json', 'here, and as JSON').action(measure).parseAsync();
