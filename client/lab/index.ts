import { type Command, InvalidArgumentError, Option } from 'commander';
import { describeFailure, exitCodeOf } from '../cli/failure.js';
import { json } from '../cli/output.js';
import { type Console, type GlobalOptions, processConsole } from '../cli/session.js';
import { POST_MOVE_POLICIES, type PostMovePolicyName, SimKvm, startDaemon } from '../index.js';
import { firmwareImage } from './guest/firmware.js';
import { DEFAULT_LAB, type LabOptions, type LabReport, type Progress, runLab } from './lab.js';
import { launchesVerify, renderReport } from './report.js';

export { DEFAULT_LAB, type LabOptions, type LabReport, type Progress, renderReport, runLab };

const MIB = 2 ** 20;
const MEMORY_MIB = { MIN: 2, MAX: 2048 } as const;
/** Two kinds of guests: each has a host to itself. */
const PRIVATE_HOSTS = 2;

interface CommandOptions {
  readonly memory: number;
  readonly policy?: readonly PostMovePolicyName[];
  readonly full?: boolean;
  readonly image?: string;
}

const memorySize = (text: string): number => {
  const [, digits, unit] = /^(\d+)([MG])$/.exec(text) ?? [];
  const mebibytes = Number(digits) * (unit === 'G' ? 1024 : 1);
  if (digits !== undefined && mebibytes >= MEMORY_MIB.MIN && mebibytes <= MEMORY_MIB.MAX) return mebibytes * MIB;
  throw new InvalidArgumentError(`'${text}' is no size between ${MEMORY_MIB.MIN}M and ${MEMORY_MIB.MAX}M, for example 32M.`);
};

/** Says on a terminal how far the lab is, on one line. */
const terminalProgress = (): { readonly progress: Progress; readonly done: () => void } => {
  const { stderr } = process;
  if (!stderr.isTTY) return { progress: () => {}, done: () => {} };
  return {
    progress: (stage, done, of) => void stderr.write(`\r\x1b[K${stage}: ${done}/${of}`),
    done: () => void stderr.write('\r\x1b[K'),
  };
};

/** Runs the lab on the daemon that the user has named, or on private ones. */
const runOn = async (target: string | null, options: LabOptions, progress: Progress): Promise<LabReport> => {
  if (target !== null) {
    await using simkvm = await SimKvm.connect(target);
    return await runLab([simkvm], options, progress);
  }
  const daemons = await Promise.all(Array.from({ length: PRIVATE_HOSTS }, () => startDaemon()));
  const hosts: SimKvm[] = [];
  try {
    for (const daemon of daemons) hosts.push(await SimKvm.connect(daemon.target));
    return await runLab(hosts, options, progress);
  } finally {
    for (const simkvm of hosts) await simkvm[Symbol.asyncDispose]();
    await Promise.all(daemons.map((daemon) => daemon.stop()));
  }
};

/** Adds the command `lab`. */
export const registerLab = (program: Command, console: Console = processConsole): void => {
  program
    .command('lab')
    .description('move encrypted guests away under every post-move policy, tear the source down, and show what each policy costs')
    .addOption(
      new Option('--memory <size>', 'guest memory')
        .argParser(memorySize)
        .default(DEFAULT_LAB.memoryBytes, `${DEFAULT_LAB.memoryBytes / MIB}M`),
    )
    .addOption(new Option('--policy <name...>', 'only these policies').choices(POST_MOVE_POLICIES))
    .option(
      '--image <file>',
      'launch this firmware image (OVMF) in place of the built-in guest, up to measurement, move and teardown',
    )
    .option('--full', 'every variant and every probe, for both kinds of guests')
    .addHelpText('after', '\nWithout --target the lab starts daemons of its own.')
    .action(async ({ memory, policy, full, image }: CommandOptions, command: Command) => {
      const { target, json: asJson } = command.optsWithGlobals<GlobalOptions>();
      const named = program.getOptionValueSource('target') !== 'default';
      const { progress, done } = terminalProgress();
      try {
        const options: LabOptions = {
          memoryBytes: memory,
          policies: policy ?? DEFAULT_LAB.policies,
          full: full ?? DEFAULT_LAB.full,
          image: image === undefined ? null : await firmwareImage(image),
        };
        const report = await runOn(named ? target : null, options, progress);
        done();
        console.out(asJson ? json(report) : renderReport(report));
        if (!launchesVerify(report)) console.exitCode(1);
      } catch (error) {
        done();
        console.error(describeFailure(error));
        console.exitCode(exitCodeOf(error));
      }
    });
};
