import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openInitExFile } from '../../server/init-ex-file.js';
import type { Log } from '../../server/log.js';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'simkvm-init-ex-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

const opened = (name: string) => {
  const said: string[] = [];
  const say = (severity: string) => (message: string, fields?: object) => {
    said.push(`${severity}: ${message} ${JSON.stringify(fields)}`);
  };
  const log: Log = { debug: say('debug'), info: say('info'), warn: say('warn'), writes: () => true };
  const path = join(directory, name);
  return { path, said, file: openInitExFile(path, log) };
};

describe('the file of --init-ex-path', () => {
  it('is made for its owner alone, and read back', () => {
    const { path, file, said } = opened('nv');
    expect(file.read(4)).toBe('ENOENT');
    expect(existsSync(path)).toBe(false);
    expect(said).toEqual([expect.stringContaining('info: SEV: the file of --init-ex-path does not exist')]);
    expect(file.write(Uint8Array.of(1, 2, 3, 4))).toBeNull();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect([...file.read(4)]).toEqual([1, 2, 3, 4]);
  });

  it('gives what it has where it is too short, and keeps what is behind where it is longer', () => {
    const { path, file, said } = opened('nv');
    writeFileSync(path, Uint8Array.of(1, 2));
    expect([...file.read(4)]).toEqual([1, 2]);
    expect(said).toEqual([expect.stringMatching(/warn: .*too short.*"bytes":2,"expected":4/)]);
    writeFileSync(path, Uint8Array.of(1, 2, 3, 4, 5));
    expect(file.write(Uint8Array.of(9, 9))).toBeNull();
    expect([...readFileSync(path)]).toEqual([9, 9, 3, 4, 5]);
  });

  it('has the errno of what cannot be opened', () => {
    const nowhere = opened('no/such/directory');
    expect(nowhere.file.read(4)).toBe('ENOENT');
    expect(nowhere.file.write(Uint8Array.of(1))).toBe('ENOENT');
    writeFileSync(join(directory, 'plain'), '');
    const beneath = opened('plain/nv');
    expect(beneath.file.read(4)).toBe('ENOTDIR');
    expect(beneath.said).toEqual([expect.stringMatching(/warn: .*cannot be opened.*ENOTDIR/)]);
  });

  it('opens a directory, in which there is nothing to read, as the kernel does', () => {
    const { path, file, said } = opened('nv');
    mkdirSync(path);
    expect(file.read(4)).toHaveLength(0);
    expect(file.write(Uint8Array.of(1))).toBe('EISDIR');
    expect(said).toEqual([expect.stringMatching(/cannot be read.*EISDIR/), expect.stringMatching(/for writing.*EISDIR/)]);
  });
});
