import { Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_HOST_CONFIG, type HostConfig } from './kernel/config.js';
import { POST_MOVE_POLICIES } from './kernel/kvm/post-move/policy.js';
import { LOG_LEVELS, type LogLevel } from './log.js';
import type { TlsOptions } from './tls.js';

/** What the daemon was told on its command line. */
export interface DaemonConfig {
  /** `host:port`; port 0 lets the system pick one. */
  readonly listen: string;
  readonly logLevel: LogLevel;
  /** Every lock point is a scheduling point, in an order that follows from the seed. */
  readonly preemptAtLocks: boolean;
  readonly host: HostConfig;
  /** File of the ccp driver's module parameter `init_ex_path`; null: the secure processor keeps its storage itself. */
  readonly initExPath: string | null;
  /** Null: connections are in the clear. */
  readonly tls: TlsOptions | null;
  readonly migration: MigrationConfig;
}

/** What the daemon is to those that it exchanges guests with. */
export interface MigrationConfig {
  /** Where identity and ledger are kept; null: both end with the daemon. */
  readonly stateDir: string | null;
  /** Fingerprints of the daemons that may be at the other end. */
  readonly peers: readonly string[];
  /** Where others can dial it, `host:port`; null: where it listens. */
  readonly advertise: string | null;
  /** Frames go as they are, and nobody proves anything. */
  readonly unsealed: boolean;
}

const DEFAULT_LISTEN = '127.0.0.1:7341';
const SUFFIX: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

const integer = (minimum: number, maximum: number) => (text: string) => {
  const value = Number(text);
  if (Number.isInteger(value) && value >= minimum && value <= maximum) return value;
  throw new InvalidArgumentError(`'${text}' is not a whole number from ${minimum} to ${maximum}.`);
};

/** `8G`, `512M`, or plain bytes. */
const size = (text: string): number => {
  const match = /^(\d+)([KMGT]?)$/.exec(text);
  const bytes = Number(match?.[1]) * (SUFFIX[match?.[2] ?? ''] ?? Number.NaN);
  if (Number.isSafeInteger(bytes) && bytes >= 2 ** 20) return bytes;
  throw new InvalidArgumentError(`'${text}' is not a size of at least 1M, such as 512M or 8G.`);
};

const address = (text: string): string => {
  if (/^(\[[0-9a-fA-F:]+\]|[^:[\]]+):\d{1,5}$/.test(text)) return text;
  throw new InvalidArgumentError(`'${text}' is not HOST:PORT, for example 127.0.0.1:0.`);
};

/** SHA-256, as the daemon prints it or as `openssl x509 -fingerprint` does. An option that can be given several times. */
const fingerprint = (text: string, before: readonly string[]): readonly string[] => {
  const hex = text.replaceAll(':', '').toLowerCase();
  if (/^[\da-f]{64}$/.test(hex)) return [...before, hex];
  throw new InvalidArgumentError(`'${text}' is not a SHA-256 of 64 hex digits.`);
};

/** True for the addresses that only this machine can reach. */
export const isLoopback = (host: string): boolean => /^(127\.|localhost$|\[?::1\]?$|\[?::ffff:127\.)/.test(host);

interface Options {
  listen: string;
  vendor: HostConfig['vendor'];
  cpus: number;
  memory: number;
  seed: string;
  sevAsids: number;
  minSevAsid: number;
  snp: boolean;
  initExPath?: string;
  policy: HostConfig['postMovePolicy'];
  sharedIrqfd: boolean;
  knownUpstreamDefects: boolean;
  dismantleReleasesIrqfds: boolean;
  snpMove: HostConfig['snpMove'];
  preemptAtLocks: boolean;
  logLevel: LogLevel;
  stateDir?: string;
  peer: readonly string[];
  advertise?: string;
  tlsCert?: string;
  tlsKey?: string;
  tlsCa?: string;
  tlsPeer: readonly string[];
  migrationUnsealed: boolean;
}

/** Mutual TLS or none: half of it would protect nothing. */
const tlsOptions = (command: Command, { tlsCert, tlsKey, tlsCa, tlsPeer }: Options): TlsOptions | null => {
  if (tlsCert !== undefined && tlsKey !== undefined && tlsCa !== undefined)
    return { cert: tlsCert, key: tlsKey, ca: tlsCa, peers: tlsPeer };
  if (tlsCert === undefined && tlsKey === undefined && tlsCa === undefined && tlsPeer.length === 0) return null;
  return command.error('error: TLS needs --tls-cert, --tls-key and --tls-ca');
};

/** Reads the command line of `simkvmd`; prints help or what is wrong and ends the process where that is asked for. */
export const parseConfig = (argv: readonly string[], version: string): DaemonConfig => {
  const defaults = DEFAULT_HOST_CONFIG;
  const command = new Command('simkvmd')
    .description('A simulated Linux/KVM host for confidential VMs, served over gRPC.')
    .version(version)
    .option('--listen <host:port>', 'address to listen on; port 0 lets the system pick', address, DEFAULT_LISTEN)
    .addOption(new Option('--vendor <vendor>', 'vendor of the CPUs').choices(['amd', 'intel']).default(defaults.vendor))
    .option('--cpus <n>', 'online CPUs', integer(1, 1024), defaults.cpus)
    .addOption(
      new Option('--memory <size>', 'DRAM, for example 512M')
        .argParser(size)
        .default(defaults.memoryBytes, `${defaults.memoryBytes / 2 ** 30}G`),
    )
    .option('--seed <text>', 'everything random on this host follows from it', defaults.seed)
    .option('--sev-asids <n>', 'highest ASID (CPUID 0x8000001F ECX)', integer(1, 65_535), defaults.sev.asids)
    .option('--min-sev-asid <n>', 'lowest ASID of a plain SEV guest (EDX)', integer(1, 65_536), defaults.sev.minSevAsid)
    .option('--snp', 'SEV-SNP guests: the platform is initialised for them at start', defaults.sev.snp)
    .option(
      '--init-ex-path <file>',
      'where the identity of the SEV platform (PEK, PDH, owner) is kept, sealed by the secure processor: ccp.init_ex_path; ' +
        'without it the identity ends with the daemon',
    )
    .addOption(
      new Option('--policy <name>', 'what becomes of the source of a move')
        .choices(POST_MOVE_POLICIES)
        .default(defaults.postMovePolicy),
    )
    .option('--shared-irqfd', 'an eventfd may belong to irqfds of several VMs, as before Linux 6.17', false)
    .option('--known-upstream-defects', 'model the known defects of the real kernel', false)
    .option('--dismantle-releases-irqfds', 'dismantling a VM also releases its irqfds', false)
    .addOption(
      new Option('--snp-move <mode>', 'move of an SEV-SNP guest').choices(['refuse', 'as_code']).default(defaults.snpMove),
    )
    .option('--state-dir <directory>', 'where the daemon keeps its identity and whose guests it has committed to')
    .addOption(
      new Option('--peer <fingerprint>', 'a daemon that guests are exchanged with (repeatable)')
        .argParser(fingerprint)
        .default([], 'none'),
    )
    .option('--advertise <host:port>', 'where other daemons can dial this one, if not where it listens', address)
    .option('--tls-cert <file>', 'certificate of this daemon (PEM): all connections are mutual TLS')
    .option('--tls-key <file>', 'its private key (PEM)')
    .option('--tls-ca <file>', 'authorities that vouch for callers and for other daemons (PEM)')
    .addOption(
      new Option('--tls-peer <fingerprint>', 'SHA-256 of the certificate of a daemon that guests are exchanged with (repeatable)')
        .argParser(fingerprint)
        .default([], 'any that the authorities vouch for'),
    )
    .option('--migration-unsealed', 'DANGEROUS, for tests: guests travel as they are, to and from anybody', false)
    .option('--preempt-at-locks', 'let calls overtake each other at every lock, in an order that follows from the seed', false)
    .addOption(new Option('--log-level <level>', 'least level that is logged').choices(LOG_LEVELS).default('info'))
    .parse([...argv]);
  const options = command.opts<Options>();
  return {
    listen: options.listen,
    logLevel: options.logLevel,
    preemptAtLocks: options.preemptAtLocks,
    host: {
      vendor: options.vendor,
      cpus: options.cpus,
      memoryBytes: options.memory,
      seed: options.seed,
      sev: { ...defaults.sev, asids: options.sevAsids, minSevAsid: options.minSevAsid, snp: options.snp },
      postMovePolicy: options.policy,
      exclusiveIrqfd: !options.sharedIrqfd,
      knownUpstreamDefects: options.knownUpstreamDefects,
      dismantleReleasesIrqfds: options.dismantleReleasesIrqfds,
      snpMove: options.snpMove,
      costFactors: {},
    },
    initExPath: options.initExPath ?? null,
    tls: tlsOptions(command, options),
    migration: {
      stateDir: options.stateDir ?? null,
      peers: options.peer,
      advertise: options.advertise ?? null,
      unsealed: options.migrationUnsealed,
    },
  };
};
