import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { lockDirectory } from '../../../server/state-dir/directory-lock.js';
import { openStateDir } from '../../../server/state-dir/state-dir.js';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'simkvm-state-'));
});

afterEach(() => rmSync(directory, { recursive: true }));

const locks = (): string[] => readdirSync(directory).filter((name) => name.startsWith('lock.'));

describe('a state directory', () => {
  it('is made where it is missing, and is readable by its owner only', () => {
    const path = join(directory, 'a', 'b');
    openStateDir(path).close();
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(statSync(join(path, 'identity')).mode & 0o777).toBe(0o600);
  });

  it.each([
    ['no directory can be made', '/proc/none/state', 'ENOENT'],
    ['there is a file', '/proc/version', 'lock'],
    ['a file is in the way', '/proc/version/state', 'ENOTDIR'],
  ])('is refused where %s', (_where, path, said) => {
    expect(() => openStateDir(path)).toThrow(new RegExp(`^--state-dir ${path}: .*${said}`));
  });

  it('has the same identity and store at every start', () => {
    const first = openStateDir(directory);
    first.close();
    const second = openStateDir(directory);
    expect(second.identitySeed).toEqual(first.identitySeed);
    expect(second.ledger.id).toBe(first.ledger.id);
    second.close();
    expect(openStateDir(join(directory, 'other')).identitySeed).not.toEqual(first.identitySeed);
  });

  it('is not opened with an identity that others can read, or that is none', () => {
    openStateDir(directory).close();
    const path = join(directory, 'identity');
    chmodSync(path, 0o640);
    expect(() => openStateDir(directory)).toThrow('can be read by others');
    chmodSync(path, 0o600);
    writeFileSync(path, 'short');
    expect(() => openStateDir(directory)).toThrow('not a seed of 32 bytes');
    expect(locks()).toEqual([]);
  });

  it('belongs to one daemon at a time', () => {
    const first = openStateDir(directory);
    expect(() => openStateDir(directory)).toThrow(`belongs to the daemon with pid ${process.pid}`);
    first.close();
    openStateDir(directory).close();
  });
});

describe('a lock of a directory', () => {
  it('is held by another process for as long as that lives', async () => {
    const sleeper = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
    lockDirectory(directory).release();
    const own = lockDirectory(directory);
    const [name = ''] = locks();
    own.release();
    // The lock that the other process would have made.
    const [, boot, namespace] = name.split('.');
    const stat = readFileSync(`/proc/${sleeper.pid}/stat`, 'utf8');
    const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
    const theirs = `lock.${boot}.${namespace}.${sleeper.pid}.${started}`;
    writeFileSync(join(directory, theirs), '');
    expect(() => lockDirectory(directory)).toThrow(`belongs to the daemon with pid ${sleeper.pid}`);
    expect(locks()).toEqual([theirs]);
    sleeper.kill('SIGKILL');
    await once(sleeper, 'exit');
    lockDirectory(directory).release();
    expect(locks()).toEqual([]);
  });

  it('of a process whose number another one has got, or of another start of the machine, is none', () => {
    const own = lockDirectory(directory);
    const [name = ''] = locks();
    own.release();
    const [, boot = '', namespace, pid] = name.split('.');
    writeFileSync(join(directory, `lock.${boot}.${namespace}.${pid}.1`), '');
    writeFileSync(
      join(directory, `lock.${boot.replace(/^./, (digit) => (digit === '0' ? '1' : '0'))}.${namespace}.${pid}.2`),
      '',
    );
    lockDirectory(directory).release();
    expect(locks()).toEqual([]);
  });

  it('of a process that cannot be seen from here is respected', () => {
    const own = lockDirectory(directory);
    const [name = ''] = locks();
    own.release();
    const [, boot, namespace] = name.split('.');
    writeFileSync(join(directory, `lock.${boot}.${namespace}1.99.1`), '');
    expect(() => lockDirectory(directory)).toThrow('belongs to the daemon with pid 99');
  });
});
