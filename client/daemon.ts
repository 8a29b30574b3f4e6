import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 5_000;
/** How much of what the daemon says on stderr an error repeats. */
const STDERR_BYTES = 4096;
/** Whoever ends without stopping the daemon, even by SIGKILL, must not leave it behind: then its stdin ends. */
const END_WITH_PARENT = 'data:text/javascript,process.stdin.resume().on("end",()=>process.exit())';
const ADDRESS_LINE = /^simkvmd listening on (\S+)$/;

/** How to start a daemon. */
export interface DaemonOptions {
  /**
   * Arguments of `simkvmd` beside `--listen`: `['--seed', 'mine', '--policy', 'ENC_DEAD']`.
   * @default none
   */
  readonly args?: readonly string[];
  /**
   * Milliseconds to wait until it listens.
   * @default 30_000
   */
  readonly timeoutMs?: number;
}

/** The bundled daemon: beside the compiled client, or where the build puts it. */
const program = (): string => {
  const candidates = ['../simkvmd.cjs', '../dist/simkvmd.cjs'].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const found = candidates.find((path) => existsSync(path));
  if (found === undefined) throw new Error(`there is no simkvmd at ${candidates.join(' or ')} (build it with \`npm run build\`)`);
  return found;
};

/** A daemon of this program's own. `await using` stops it. */
export class Daemon implements AsyncDisposable {
  private constructor(
    private readonly child: ChildProcess,
    /** `127.0.0.1:PORT` */
    readonly target: string,
    /** Resolves when it has ended. */
    private readonly exited: Promise<void>,
  ) {}

  /** Its process id on this machine. */
  get pid(): number {
    return this.child.pid ?? 0;
  }

  /** @see startDaemon */
  static async start({ args = [], timeoutMs = START_TIMEOUT_MS }: DaemonOptions): Promise<Daemon> {
    const command = ['--import', END_WITH_PARENT, program(), '--listen', '127.0.0.1:0', '--log-level', 'warn', ...args];
    const child = spawn(process.execPath, command, { stdio: 'pipe' });
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    try {
      const target = await addressOf(child, timeoutMs);
      unref(child);
      return new Daemon(child, target, exited);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** Stops it and waits until it has ended: SIGTERM, and SIGKILL if that does not help. */
  async stop(): Promise<void> {
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.exited;
    clearTimeout(timer);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}

/** Waits for the line that says where the daemon listens. */
const addressOf = (child: ChildProcessWithoutNullStreams, timeoutMs: number): Promise<string> =>
  new Promise((resolve, reject) => {
    let said = '';
    const fail = (what: string): void => {
      clearTimeout(timer);
      reject(new Error(`simkvmd ${what}${said === '' ? '' : `: ${said.trim()}`}`));
    };
    const timer = setTimeout(() => fail(`has not begun to listen within ${timeoutMs} ms`), timeoutMs);
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-STDERR_BYTES);
    });
    child.once('error', (error) => fail(`cannot be started (${error.message})`));
    // Once it has been heard to the end, which may be after its `exit`.
    child.once('close', (code, signal) => fail(`ended with ${signal ?? `status ${code}`} before it listened`));
    createInterface(child.stdout).on('line', (line) => {
      const [, address] = ADDRESS_LINE.exec(line) ?? [];
      if (address === undefined) return;
      clearTimeout(timer);
      resolve(address);
    });
  });

/** Lets this program end while the daemon runs. */
const unref = (child: ChildProcessWithoutNullStreams): void => {
  child.unref();
  for (const stream of [child.stdin, child.stdout, child.stderr]) if (stream instanceof Socket) stream.unref();
};

/**
 * Starts a private daemon on a free port of the loopback interface, for a test suite.
 *
 * @example
 * ```ts
 * await using daemon = await startDaemon({ args: ['--policy', 'VM_MOVED'] });
 * await using simkvm = await SimKvm.connect(daemon.target);
 * ```
 */
export const startDaemon = (options: DaemonOptions = {}): Promise<Daemon> => Daemon.start(options);
