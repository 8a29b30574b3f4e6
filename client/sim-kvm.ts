import type { SpawnResponse } from '../gen/messages.js';
import { ProcessService } from '../gen/services.js';
import { Caller } from './call.js';
import { Host } from './host.js';
import { KeyDistribution } from './key-distribution.js';
import { Lease } from './lease.js';
import { Migrations } from './migrations.js';
import { Process, processOf } from './process.js';
import { RequestIds } from './request-ids.js';
import { type CallingObject, syscall, valueOrThrow } from './syscall.js';
import type { Transport } from './transport.js';
import type { ClientTls } from './transports/tls.js';
import { UnaryTransport } from './transports/unary.js';

/** Where `simkvmd` listens unless told otherwise. */
export const DEFAULT_TARGET = '127.0.0.1:7341';
const CONNECT_TIMEOUT_MS = 30_000;

/** How to connect. */
export interface ConnectOptions {
  /**
   * Milliseconds to wait for the daemon to answer.
   * @default 30_000
   */
  readonly timeoutMs?: number;
  /**
   * Certificates, for a daemon that was started with `--tls-cert`.
   * @default none: in the clear
   */
  readonly tls?: ClientTls;
}

/** What process to become. */
export interface AttachOptions {
  /**
   * Name for people, at most 64 characters.
   * @default none
   */
  readonly name?: string;
  /**
   * Token of a process whose lease to take over: a forked child, or one that was spawned. From then on calls are to be made
   * through the object that `attach` gives, and no longer through the one that `fork` or `spawn` gave.
   * @default a new process
   */
  readonly token?: string;
  /**
   * Milliseconds to wait for the process.
   * @default 30_000
   */
  readonly timeoutMs?: number;
}

const spawn = syscall(
  ProcessService.spawn,
  (_self: CallingObject, name: string) => ({ name }),
  (response: SpawnResponse) => response,
);

/**
 * A connection to a simulated host.
 *
 * @example
 * ```ts
 * import { SimKvm } from 'simkvm';
 *
 * await using simkvm = await SimKvm.connect('127.0.0.1:7341');
 * await using process = await simkvm.attach({ name: 'vmm' });
 * await using kvm = await process.openKvm();
 * await using vm = await kvm.createVm();
 * console.log((await vm.inspect()).vm_id);
 * ```
 */
export class SimKvm implements AsyncDisposable {
  /** What the operator of the host sees and sets. */
  readonly host: Host;
  /** AMD's key distribution service, as a verifier asks it for certificates. */
  readonly keyDistribution: KeyDistribution;
  /** Migrations between this host and others. */
  readonly migrations: Migrations;
  /** The host's init process, pid 1: calls that name no process are its own. */
  readonly init: Process;

  constructor(private readonly transport: Transport) {
    const caller = new Caller(transport, { token: null, ids: null });
    this.host = new Host(caller);
    this.keyDistribution = new KeyDistribution(caller);
    this.migrations = new Migrations(caller);
    this.init = new Process(caller, 1, '1', null);
  }

  /**
   * Connects to the daemon at `target`.
   * @throws KvmError with code UNAVAILABLE if none answers in time
   */
  static async connect(target: string = DEFAULT_TARGET, { timeoutMs, tls }: ConnectOptions = {}): Promise<SimKvm> {
    return new SimKvm(await UnaryTransport.connect(target, timeoutMs ?? CONNECT_TIMEOUT_MS, tls));
  }

  /** Makes a process that lives until it is disposed of, or this program ends. */
  async attach({ name, token, timeoutMs }: AttachOptions = {}): Promise<Process> {
    const lease = await Lease.open(this.transport, { name, token }, timeoutMs ?? CONNECT_TIMEOUT_MS);
    return processOf(this.transport, lease, token === undefined ? new RequestIds() : RequestIds.takenOver());
  }

  /** Makes a process that lives until it is told to exit, also when this program ends before. */
  async spawn(name = ''): Promise<Process> {
    const { ret: pid, token } = valueOrThrow(await spawn(this.host, name));
    return new Process(new Caller(this.transport, { token, ids: new RequestIds() }), Number(pid), token, null);
  }

  /**
   * A process that somebody else keeps alive: calls are made in its name, which its token allows.
   * @param token on the host's own machine also the number of init, or of a process that was spawned
   */
  actAs(token: string): Process {
    return new Process(new Caller(this.transport, { token, ids: null }), Number(token), token, null);
  }

  /** Closes the connection; processes that were attached over it end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.transport.close();
  }
}
