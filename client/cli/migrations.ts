import { type Command, InvalidArgumentError } from 'commander';
import type { GetIdentityResponse, Migration } from '../../gen/messages.js';
import { takeUpRelay } from '../migrate.js';
import type { Decision } from '../migrations.js';
import type { SimKvm } from '../sim-kvm.js';
import { progressLines, renderMigration, renderMigrations } from './migration-view.js';
import { type Moved, movedView, renderMoved } from './moved.js';
import { fields } from './output.js';
import { type Console, connect, type GlobalOptions, hostAndPort, INIT, runCommand, wholeNumber } from './session.js';

const decision = (text: string): Decision => {
  if (text === 'run' || text === 'discard') return text;
  throw new InvalidArgumentError(`'${text}' is neither run nor discard.`);
};

const renderIdentity = ({ fingerprint, boot_id, peers }: GetIdentityResponse): string =>
  fields([
    ['fingerprint', fingerprint],
    ['boot', boot_id],
    ['peers', peers.length === 0 ? 'none: no guest comes or goes' : peers.join(' ')],
  ]);

interface RelayOptions extends GlobalOptions {
  readonly to: string;
  readonly process: string;
  readonly toProcess: string;
  readonly streams?: number;
}

const carryOn = async (simkvm: SimKvm, console: Console, session: string, options: RelayOptions): Promise<Moved> => {
  await using other = await connect(options, options.to);
  try {
    const moved = await takeUpRelay(session, {
      ends: [simkvm.actAs(options.process), other.actAs(options.toProcess)],
      streams: options.streams,
      onProgress: (migration) => console.status?.show(progressLines(migration)),
    });
    return movedView(moved, moved.statistics);
  } finally {
    console.status?.clear();
  }
};

/** `simkvm migrations`: where guests stand that come and go, and what an operator may do about it. */
export const registerMigrations = (program: Command, console: Console): void => {
  const migrations = program.command('migrations').description('migrations between this host and others');
  const onSession = (name: string, description: string) =>
    migrations.command(name).description(description).argument('<session>', 'as `simkvm migrations` lists it');

  migrations
    .command('list', { isDefault: true })
    .description('every session of this host, oldest first')
    .action((_options, command: Command) =>
      runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.migrations.list(), renderMigrations),
    );

  onSession('show', 'where a session stands, and what has arrived').action((session: string, _options, command: Command) =>
    runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.migrations.get(session), renderMigration),
  );

  onSession('watch', 'follow a session until both sides know how it has ended').action(
    (session: string, _options, command: Command) =>
      runCommand(
        command.optsWithGlobals<GlobalOptions>(),
        console,
        async (simkvm) => {
          let last: Migration | null = null;
          for await (const migration of simkvm.migrations.watch(session)) {
            last = migration;
            console.status?.show(progressLines(migration));
          }
          console.status?.clear();
          return last ?? simkvm.migrations.get(session);
        },
        renderMigration,
      ),
  );

  onSession('cancel', 'give a migration up').action((session: string, _options, command: Command) =>
    runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.migrations.cancel(session), renderMigration),
  );

  onSession('post-copy', 'hand a plain guest over now; its memory follows (begun with `migrate --post-copy`)').action(
    (session: string, _options, command: Command) =>
      runCommand(
        command.optsWithGlobals<GlobalOptions>(),
        console,
        (simkvm) => simkvm.migrations.startPostCopy(session),
        renderMigration,
      ),
  );

  onSession('relay', 'carry on between its two hosts what `migrate --relay` does not carry any more; Ctrl-C stops only that')
    .requiredOption('--to <host:port>', 'the other host, as this program sees it', hostAndPort)
    .option('--process <token>', 'process of this host that sends or receives the VM', INIT)
    .option('--to-process <token>', 'process of the other one', INIT)
    .option('--streams <n>', 'streams that pages go over (default: 1)', wholeNumber)
    .action((session: string, _options, command: Command) => {
      const options = command.optsWithGlobals<RelayOptions>();
      return runCommand(options, console, (simkvm) => carryOn(simkvm, console, session, options), renderMoved);
    });

  onSession('override', 'DANGEROUS: decide for a session in doubt; if you are wrong about the other host the guest runs twice')
    .argument(
      '<decision>',
      '`run`: the copy of this host runs; `discard`: it is destroyed, or taken for sent; what post-copy owes is given up',
      decision,
    )
    .requiredOption('--dangerous', 'you know what became of the guest at the other host')
    .action((session: string, chosen: Decision, _options, command: Command) =>
      runCommand(
        command.optsWithGlobals<GlobalOptions>(),
        console,
        (simkvm) => simkvm.migrations.override(session, chosen),
        renderMigration,
      ),
    );

  migrations
    .command('identity')
    .description('who this daemon is to others, and whom it exchanges guests with')
    .action((_options, command: Command) =>
      runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.migrations.identity(), renderIdentity),
    );

  migrations
    .command('allow')
    .description('let guests come from another daemon, and go to it')
    .argument('<fingerprint>', 'what `simkvm migrations identity` says there')
    .action((fingerprint: string, _options, command: Command) =>
      runCommand(
        command.optsWithGlobals<GlobalOptions>(),
        console,
        (simkvm) => simkvm.migrations.allowPeer(fingerprint),
        (peers) => peers.join('\n'),
      ),
    );
};
