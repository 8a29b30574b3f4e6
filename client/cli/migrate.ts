import { type Command, InvalidArgumentError, Option } from 'commander';
import { type MigrationLimitsInit, PostCopy, type Verdict } from '../../gen/messages.js';
import { type MigrateOptions, migrate, validateMigration } from '../migrate.js';
import type { Process } from '../process.js';
import type { SimKvm } from '../sim-kvm.js';
import { Vm } from '../vm.js';
import { EXIT } from './failure.js';
import { progressLines } from './migration-view.js';
import { type Moved, movedView, renderMoved } from './moved.js';
import { type Console, connect, type GlobalOptions, hostAndPort, INIT, runCommand, wholeNumber } from './session.js';

/** `100M`: bytes of guest memory a second. */
const bandwidth = (text: string): number => {
  const match = /^(\d+)([KMG]?)$/.exec(text);
  if (match === null) throw new InvalidArgumentError(`'${text}' is not a number of bytes a second, such as 100M.`);
  return Number(match[1]) * { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 }[match[2] as '' | 'K' | 'M' | 'G'];
};

/** When a guest may go before its memory, by the words of the command line. */
const POST_COPY = {
  'on-request': PostCopy.POST_COPY_ON_REQUEST,
  'after-rounds': PostCopy.POST_COPY_AFTER_ROUNDS,
  'at-once': PostCopy.POST_COPY_AT_ONCE,
} as const;

interface Options extends GlobalOptions {
  readonly fd?: number;
  readonly vm?: number;
  readonly process: string;
  readonly to: string;
  readonly toProcess: string;
  readonly session?: string;
  readonly downtime?: number;
  readonly rounds?: number;
  readonly bandwidth?: number;
  readonly switchoverBandwidth?: number;
  readonly streams?: number;
  readonly autoConverge?: boolean;
  readonly compress?: boolean;
  readonly postCopy?: keyof typeof POST_COPY;
  readonly push?: boolean;
  readonly relay?: boolean;
  readonly dryRun?: boolean;
}

const limitsOf = (options: Options): MigrationLimitsInit => ({
  downtime_ms: options.downtime,
  rounds: options.rounds,
  bandwidth: options.bandwidth,
  switchover_bandwidth: options.switchoverBandwidth,
  streams: options.streams,
  auto_converge: options.autoConverge,
  compress: options.compress,
  post_copy: options.postCopy && POST_COPY[options.postCopy],
});

/** The descriptor of a VM that is named by its number, among those of a process. */
const fdOfVm = async (process: Process, id: number): Promise<number> => {
  const fds = await process.listFds();
  const found = fds.find(({ kind, vm_id }) => kind === 'kvm-vm' && vm_id === id);
  if (found !== undefined) return found.fd;
  throw new Error(`the process has no descriptor of VM ${id}; name its owner with --process TOKEN`);
};

/** What the program prints. */
type Outcome = { readonly verdict: Verdict } | Moved;

/**
 * What the first Ctrl-C does; the second one ends the program as ever. One listener for all of it: between two, a signal is
 * lost or ends the program.
 */
class FirstInterrupt {
  private pressed = false;

  private readonly listener = (): void => {
    this.pressed = true;
    this.does();
  };

  constructor(private does: () => void) {
    process.once('SIGINT', this.listener);
  }

  /** From now on it does something else: at once, where it has been pressed already. */
  now(does: () => void): void {
    this.does = does;
    if (this.pressed) does();
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.listener);
  }
}

const move = async (simkvm: SimKvm, console: Console, options: Options): Promise<Outcome> => {
  const process = simkvm.actAs(options.process);
  const vm = process.adopt(Vm, options.fd ?? (await fdOfVm(process, options.vm ?? 0)));
  const { to: address, toProcess, session, push, relay = false } = options;
  const end = { address, process: toProcess };
  const limits = limitsOf(options);
  if (options.dryRun) {
    const verdict = await validateMigration(vm, { to: end, limits, push });
    if (!verdict.allowed) console.exitCode(EXIT.REFUSED);
    return { verdict };
  }
  await using other = relay ? await connect(options, address) : null;
  const to: MigrateOptions['to'] = other === null ? end : other.actAs(toProcess);
  const onProgress: MigrateOptions['onProgress'] = (migration) => console.status?.show(progressLines(migration));
  const giveUp = new AbortController();
  using interrupt = new FirstInterrupt(() => giveUp.abort(new Error('interrupted')));
  try {
    const moved = await migrate(vm, { to, session, limits, push, relay, signal: giveUp.signal, onProgress });
    // What this program carries does not come any more when it ends; what the daemons fetch from each other does.
    if (!relay) interrupt[Symbol.dispose]();
    else if (moved.statistics.pages_left) interrupt.now(() => warnOfMemory(console, moved.session, address));
    return movedView(moved, await moved.completed());
  } finally {
    console.status?.clear();
  }
};

const warnOfMemory = (console: Console, session: string, address: string): void => {
  console.status?.clear();
  console.error(
    `the guest runs there, and waits for memory that comes by way of this program; Ctrl-C once more ends it all the same, and
\`simkvm migrations relay ${session} --to ${address}\` takes it up again`,
  );
};

/** Of a detail's name. */
const DETAIL_WIDTH = 12;

const render = (outcome: Outcome): string => {
  if ('verdict' in outcome) {
    const { allowed, errno_name, reason, details } = outcome.verdict;
    if (allowed) return 'it would be allowed';
    const rows = Object.entries(details).map(([name, value]) => `  ${`${name}:`.padEnd(DETAIL_WIDTH)}${value}`);
    return [`it would be refused: ${errno_name} (${reason})`, ...rows].join('\n');
  }
  return renderMoved(outcome);
};

/** `simkvm migrate`: moves a running guest to another host. */
export const registerMigrate = (program: Command, console: Console): void => {
  program
    .command('migrate')
    .description('move a running guest to another host; Ctrl-C gives it up')
    .option('--fd <n>', 'descriptor of the VM in its process', wholeNumber)
    .option('--vm <id>', 'number of the VM, as `simkvm vms` lists it, instead of --fd', wholeNumber)
    .option('--process <token>', 'process that owns the VM', INIT)
    .requiredOption('--to <host:port>', 'the other daemon, as this one sees it (with --relay: as this program does)', hostAndPort)
    .option('--to-process <token>', 'process there that is to own it', INIT)
    .option('--session <name>', 'number of the session; the daemon picks one otherwise')
    .option('--downtime <ms>', 'how long the guest may be stopped (default: 300)', wholeNumber)
    .option('--rounds <n>', 'rounds of copying after which it is stopped in any case (default: 30)', wholeNumber)
    .option('--bandwidth <bytes>', 'guest memory a second while the guest runs, such as 100M', bandwidth)
    .option(
      '--switchover-bandwidth <bytes>',
      'what the link carries once the guest is stopped; foretells the downtime',
      bandwidth,
    )
    .option('--streams <n>', 'streams that pages go over (default: 1)', wholeNumber)
    .option('--auto-converge', 'slow the vCPUs down where they write faster than is copied')
    .option('--compress', 'compress pages that travel in the clear')
    .addOption(
      new Option(
        '--post-copy [when]',
        'hand a plain guest over before all of its memory; until the rest has come it is lost if either host is',
      )
        .choices(Object.keys(POST_COPY))
        .preset('after-rounds'),
    )
    .option('--push', 'the source pushes, instead of letting the destination pull')
    .option('--relay', 'carry it through this program, where the daemons cannot reach each other')
    .option(
      '--dry-run',
      'only say whether it would be allowed, by both hosts and the firmware; if not, the exit code is 1; the daemons ask each other, also with --relay',
    )
    .action((_options, command: Command) => {
      const options = command.optsWithGlobals<Options>();
      if ((options.fd === undefined) === (options.vm === undefined))
        command.error('error: name the VM by --fd or by --vm', { exitCode: EXIT.USAGE });
      return runCommand(options, console, (simkvm) => move(simkvm, console, options), render);
    });
};
