import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';

/** The daemon as it is shipped; `npm run build` makes it. */
const PROGRAM = 'dist/simkvmd.cjs';

export interface TestDaemon extends AsyncDisposable {
  /** `127.0.0.1:PORT` */
  readonly address: string;
  readonly process: ChildProcess;
  /** What it has logged so far. */
  log(): string;
}

/** Starts a daemon on a port that the system picks; disposing of it ends it. */
export const startTestDaemon = (...options: string[]): Promise<TestDaemon> => startDaemonUnder([], {}, ...options);

/** The same with options of Node's and variables of the environment. */
export const startDaemonUnder = (
  nodeOptions: readonly string[],
  env: Readonly<Record<string, string>>,
  ...options: string[]
): Promise<TestDaemon> => startDaemonBy([process.execPath, ...nodeOptions], env, ...options);

/** The same with the command that begins it: Node, or what puts it somewhere else first. A second `--listen` counts. */
export const startDaemonBy = async (
  [program = process.execPath, ...command]: readonly string[],
  env: Readonly<Record<string, string>>,
  ...options: string[]
): Promise<TestDaemon> => {
  if (!existsSync(PROGRAM)) throw new Error(`${PROGRAM} is missing: run npm run build first`);
  const child = spawn(program, [...command, PROGRAM, '--listen', '127.0.0.1:0', ...options], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  let logged = '';
  child.stderr.on('data', (chunk: Buffer) => {
    logged += chunk.toString();
  });
  const address = await new Promise<string>((resolve, reject) => {
    let printed = '';
    child.stdout.on('data', (chunk: Buffer) => {
      printed += chunk.toString();
      const match = /listening on (\S+)\n/.exec(printed);
      if (match?.[1] !== undefined) resolve(match[1]);
    });
    child.once('close', (code) => reject(new Error(`simkvmd ended with ${code}: ${logged}`)));
  });
  const stop = (): Promise<void> =>
    new Promise((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      child.once('exit', () => resolve());
      child.kill('SIGTERM');
    });
  return { address, process: child, log: () => logged, [Symbol.asyncDispose]: stop };
};
