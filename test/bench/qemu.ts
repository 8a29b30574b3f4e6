import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import type { Authority } from '../certificates.js';

/** QEMU's own migration over TLS, of a stopped guest on two QEMU processes, where QEMU is installed. */

const QEMU = 'qemu-system-x86_64';
/** Guest memory is a file here, so that it can be filled before the guest is there. */
const SHARED_MEMORY = '/dev/shm';
const POLL_MS = 5;

/** Its version; null: it is not installed. */
export const qemuVersion = async (): Promise<string | null> => {
  const child = spawn(QEMU, ['--version'], { stdio: ['ignore', 'pipe', 'ignore'] });
  const said: Promise<Buffer[]> = child.stdout.toArray();
  const [code] = await once(child, 'close').catch(() => [null]);
  if (code !== 0) return null;
  const [, version] = /version (\S+)/.exec(Buffer.concat(await said).toString()) ?? [];
  return version ?? null;
};

/** What is read from QMP; everything else in its answers is left alone. */
interface Answer {
  readonly return?: {
    readonly status?: string;
    readonly 'total-time'?: number;
    readonly 'socket-address'?: readonly { readonly port: string }[];
  };
  readonly error?: { readonly desc: string };
}

/** A QEMU process and its monitor (QMP). */
class Qemu implements AsyncDisposable {
  private readonly lines: AsyncIterator<string>;

  private constructor(private readonly child: ChildProcessByStdio<Writable, Readable, null>) {
    this.lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  static async start(...args: string[]): Promise<Qemu> {
    const fixed = ['-nodefaults', '-display', 'none', '-S', '-qmp', 'stdio'];
    const qemu = new Qemu(spawn(QEMU, [...fixed, ...args], { stdio: ['pipe', 'pipe', 'inherit'] }));
    await qemu.lines.next();
    await qemu.call('qmp_capabilities');
    return qemu;
  }

  async call(execute: string, args: object = {}): Promise<NonNullable<Answer['return']>> {
    this.child.stdin.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    for (;;) {
      const { value, done } = await this.lines.next();
      if (done) throw new Error(`${QEMU} has ended`);
      const answer: Answer = JSON.parse(value);
      if (answer.error !== undefined) throw new Error(`${execute}: ${answer.error.desc}`);
      if (answer.return !== undefined) return answer.return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exited = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exited;
  }
}

/** Guest memory and certificates, for any number of migrations. */
export class QemuMigration implements Disposable {
  private readonly directory = mkdtempSync(join(SHARED_MEMORY, 'simkvm-bench-'));

  constructor(
    authority: Authority,
    private readonly mib: number,
  ) {
    for (const end of ['server', 'client'] as const) {
      const { cert, key, ca } = authority.certify(`qemu-${end}`);
      const folder = join(this.directory, end);
      mkdirSync(folder);
      copyFileSync(ca, join(folder, 'ca-cert.pem'));
      copyFileSync(cert, join(folder, `${end}-cert.pem`));
      copyFileSync(key, join(folder, `${end}-key.pem`));
    }
    // Both sides' memory is there beforehand: to QEMU that makes a difference of two.
    for (const side of ['here', 'there']) writeFileSync(join(this.directory, side), randomBytes(mib * 2 ** 20));
  }

  /** Moves a guest once. @returns seconds, as QEMU counts them */
  async move(): Promise<number> {
    await using there = await this.start('there', 'server', '-incoming', 'defer');
    await using here = await this.start('here', 'client');
    await there.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
    const [listening] = (await there.call('query-migrate'))['socket-address'] ?? [];
    await here.call('migrate', { uri: `tcp:127.0.0.1:${listening?.port}` });
    for (;;) {
      await setTimeout(POLL_MS);
      const { status, 'total-time': milliseconds = 0 } = await here.call('query-migrate');
      if (status === 'completed') return milliseconds / 1000;
      if (status === 'failed') throw new Error('the migration has failed');
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true });
  }

  private async start(memory: string, endpoint: 'server' | 'client', ...args: string[]): Promise<Qemu> {
    const ram = `memory-backend-file,id=ram,size=${this.mib}M,mem-path=${join(this.directory, memory)},share=on`;
    const tls = `tls-creds-x509,id=tls,dir=${join(this.directory, endpoint)},endpoint=${endpoint}`;
    const machine = ['-machine', 'pc,accel=tcg,memory-backend=ram', '-m', `${this.mib}M`];
    const qemu = await Qemu.start('-object', ram, ...machine, '-object', tls, ...args);
    const parameters = { 'tls-creds': 'tls', 'max-bandwidth': 2 ** 40, 'downtime-limit': 300 };
    await qemu.call('migrate-set-parameters', parameters);
    return qemu;
  }
}
