import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Host, Migrations, type Process, SimKvm } from '../../../client/index.js';
import { createIdentity, fingerprint } from '../../../server/migration/identity.js';
import { startDaemonBy, type TestDaemon } from '../../helpers/daemon.js';
import { channelKeys } from './frame-reader.js';

const RECORDER = join(import.meta.dirname, '../../helpers/record-keys.cjs');

/** Where a machine is, and what its daemon is told. */
export interface MachineOptions {
  /** What starts a program there: `ip netns exec NAME`. @default this machine */
  readonly enter?: readonly string[];
  /** Of the daemon. @default 127.0.0.1:0 */
  readonly listen?: string;
  /** Where the test dials it. @default where it says that it listens */
  readonly dial?: string;
}

/** A start of a machine's daemon, and a process there. */
interface Boot {
  readonly daemon: TestDaemon;
  readonly simkvm: SimKvm;
  readonly process: Process;
}

/** A machine with one daemon, which may lose its power and be started again: what is on its disk stays. */
export class Machine implements AsyncDisposable {
  private readonly folder = mkdtempSync(join(tmpdir(), 'simkvm-machine-'));
  /** By which its daemon knows itself to others, at every start. */
  readonly fingerprint: string;
  private booted: Boot | null = null;
  private lostLogs = '';
  private lastAddress = '';

  constructor(private readonly options: MachineOptions = {}) {
    const seed = randomBytes(32);
    mkdirSync(this.stateDir);
    writeFileSync(join(this.stateDir, 'identity'), seed.toString('hex'), { mode: 0o600 });
    this.fingerprint = fingerprint(createIdentity(seed).publicKey);
  }

  private get boot(): Boot {
    if (this.booted === null) throw new Error('the machine is off');
    return this.booted;
  }

  get process(): Process {
    return this.boot.process;
  }

  /** What is written by every daemon of this machine. */
  get log(): string {
    return this.lostLogs + (this.booted?.daemon.log() ?? '');
  }

  /** Where the daemon listens, for this test, or has listened. */
  get address(): string {
    return this.lastAddress;
  }

  /** Its migrations, as a process of it sees them. */
  get migrations(): Migrations {
    return new Migrations(this.process.caller);
  }

  get host(): Host {
    return new Host(this.process.caller);
  }

  get keyFile(): string {
    return join(this.folder, 'keys');
  }

  private get stateDir(): string {
    return join(this.folder, 'state');
  }

  /** Starts its daemon, with a VMM. */
  async start(...args: readonly string[]): Promise<void> {
    const { enter = [], listen = '127.0.0.1:0', dial } = this.options;
    const command = [...enter, process.execPath, '--require', RECORDER];
    const own = ['--listen', listen, '--state-dir', this.stateDir, '--log-level', 'info'];
    const daemon = await startDaemonBy(command, { SIMKVM_KEYS: this.keyFile }, ...own, ...args);
    this.lastAddress = dial ?? daemon.address;
    const simkvm = await SimKvm.connect(this.lastAddress);
    this.booted = { daemon, simkvm, process: await simkvm.attach({ name: 'vmm' }) };
  }

  /** The VMM ends, and another one begins. */
  async restartVmm(): Promise<void> {
    const { daemon, simkvm, process } = this.boot;
    await process[Symbol.asyncDispose]();
    this.booted = { daemon, simkvm, process: await simkvm.attach({ name: 'vmm' }) };
  }

  /** The power goes off. */
  async kill(): Promise<void> {
    const { daemon, simkvm } = this.boot;
    this.booted = null;
    const gone = new Promise((resolve) => daemon.process.once('exit', resolve));
    daemon.process.kill('SIGKILL');
    await gone;
    this.lostLogs += daemon.log();
    await simkvm[Symbol.asyncDispose]();
  }

  /** What is there: nothing, if all VMs are closed and nothing has been left behind. */
  async leftovers() {
    const { vms, kmem, sev, findings } = await this.host.getHost();
    return { vms, kmem, contexts: sev?.guest_count ?? 0, findings };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.booted !== null) {
      const { daemon, simkvm } = this.booted;
      await simkvm[Symbol.asyncDispose]();
      await daemon[Symbol.asyncDispose]();
    }
    rmSync(this.folder, { recursive: true });
  }
}

export const NOTHING_LEFT = { vms: 0, kmem: [], contexts: 0, findings: 0n };

/** The keys of all channels between machines. */
export const keysOf =
  (...machines: readonly Machine[]) =>
  (): Uint8Array[] =>
    channelKeys(machines.map(({ keyFile }) => keyFile));
