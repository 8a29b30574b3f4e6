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

const row = ({ name, ours, baseline, ratio, target }: Figure): string[] => [name, ours, baseline, ratio.toFixed(2), target];

const say = (what: string): void => void process.stderr.write(`${what} ...\n`);

await using echoServer = await bundleServer('echo-server');
const figures: Figure[] = [];
{
  say('unary ioctls');
  await using simkvmd = await startSimkvmd();
  await using echo = await startServer(echoServer.program);
  figures.push(...(await measureUnary(simkvmd, echo)));
  say('KVM_RUN');
  figures.push(...(await measureKvmRun(simkvmd, echo)));
}
say('guest instructions');
figures.push(...measureCpu());
say('ioctls and memslots in process');
figures.push(...measureInProcess(), ...measureMemslots());
say('SEV commands on guest memory');
figures.push(...(await measureSev()));
say('migration');
figures.push(...(await measureMigration(say)));
say('downtime of a migration');
figures.push(...(await measureDowntime()));
say('cold start');
figures.push(...(await measureColdStart(echoServer.program)));
say('resident memory');
figures.push(...(await measureMemory(echoServer.program)));
process.stdout.write(`${table(['FIGURE', 'OURS', 'AGAINST', 'RATIO', 'TARGET'], figures.map(row))}\n`);
