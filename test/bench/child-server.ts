import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

/** A server in a process of its own. */
export interface ChildServer extends AsyncDisposable {
  readonly target: string;
  /** Resident memory now, in bytes. */
  residentBytes(): Promise<number>;
}

/** The daemon as it is shipped. */
const SIMKVMD = fileURLToPath(new URL('../../simkvmd.cjs', import.meta.url));

/** Starts `program`, which prints the address that it listens on. */
export const startServer = async (program: string, ...args: string[]): Promise<ChildServer> => {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  // A benchmark that ends early must not leave its servers behind.
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  let said = '';
  const target = await new Promise<string>((resolve, reject) => {
    child.stdout.on('data', (text: Buffer) => {
      said += text.toString();
      const [, address] = /listening on (\S+)\n/.exec(said) ?? [];
      if (address !== undefined) resolve(address);
    });
    exited.then(() => reject(new Error(`${program} ended before it listened`)), reject);
  });
  return {
    target,
    residentBytes: async () => {
      const [, kilobytes] = /VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${child.pid}/status`, 'utf8')) ?? [];
      return Number(kilobytes) * 1024;
    },
    [Symbol.asyncDispose]: async () => {
      process.off('exit', kill);
      kill();
      await exited;
    },
  };
};

export const startSimkvmd = (...args: string[]): Promise<ChildServer> =>
  startServer(SIMKVMD, '--listen', '127.0.0.1:0', '--log-level', 'error', ...args);

/** A bare server, bundled as the daemon is: finding and reading modules is not what is compared. */
export const bundleServer = async (name: 'echo-server' | 'bare-stream'): Promise<{ program: string } & AsyncDisposable> => {
  const folder = mkdtempSync(join(tmpdir(), 'simkvm-bench-'));
  const program = join(folder, `${name}.cjs`);
  await build({
    entryPoints: [fileURLToPath(new URL(`./${name}.js`, import.meta.url))],
    outfile: program,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    minifySyntax: true,
    minifyWhitespace: true,
    logLevel: 'error',
  });
  return { program, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
};
