import {
  appendFileSync,
  fsyncSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { LedgerFile } from '../../../server/state-dir/ledger-file.js';

vi.mock('node:fs', async (original) => {
  const fs = await original<typeof import('node:fs')>();
  return { ...fs, fsyncSync: vi.fn(fs.fsyncSync), writeSync: vi.fn(fs.writeSync) };
});

let directory: string;
let path: string;
const open = (): LedgerFile => LedgerFile.open(path, () => 'store-1');

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'simkvm-ledger-'));
  path = join(directory, 'ledger');
});

afterEach(() => {
  vi.clearAllMocks();
  rmSync(directory, { recursive: true });
});

describe('a ledger in a file', () => {
  it('has a Commit on disk when record returns', () => {
    const ledger = open();
    const [before] = [vi.mocked(fsyncSync).mock.calls.length, vi.mocked(writeSync).mockClear()];
    let written = '';
    vi.mocked(fsyncSync).mockImplementationOnce(() => {
      written = readFileSync(path, 'utf8');
    });
    ledger.record({ kind: 'committed', session: 'a' });
    expect(vi.mocked(fsyncSync).mock.calls.length).toBe(before + 1);
    expect(written).toContain('"committed"');
    expect(ledger.hasCommitted('a')).toBe(true);
  });

  it('knows of a Commit after a restart, under the same id', () => {
    open().record({ kind: 'committed', session: 'a' });
    const again = LedgerFile.open(path, () => 'store-2');
    expect(again.id).toBe('store-1');
    expect([again.hasCommitted('a'), again.hasCommitted('b')]).toEqual([true, false]);
  });

  it('is not the old store where its file has been removed', () => {
    open();
    rmSync(path);
    expect(LedgerFile.open(path, () => 'store-2').id).toBe('store-2');
  });

  it('knows nothing of a Commit that was being written when the daemon was killed, wherever the line was torn', () => {
    const ledger = open();
    ledger.record({ kind: 'committed', session: 'a' });
    const safe = statSync(path).size;
    ledger.record({ kind: 'committed', session: 'b' });
    const whole = readFileSync(path);
    for (let length = safe; length < whole.length; length++) {
      writeFileSync(path, whole.subarray(0, length));
      const again = open();
      expect([length, again.hasCommitted('a'), again.hasCommitted('b')]).toEqual([length, true, false]);
      again.close();
    }
  });

  it('goes on behind a torn line', () => {
    open().record({ kind: 'committed', session: 'a' });
    appendFileSync(path, '{"kind":"comm');
    open().record({ kind: 'committed', session: 'c' });
    const again = open();
    expect([again.hasCommitted('a'), again.hasCommitted('c')]).toEqual([true, true]);
  });

  it('does not start where a line within it is damaged: it may have been a Commit', () => {
    open().record({ kind: 'committed', session: 'a' });
    const text = readFileSync(path, 'utf8').replace('"committed"', '"cxmmitted"');
    writeFileSync(path, `${text}{"kind":"committed","session":"b"}\n`);
    expect(open).toThrow('is damaged at line 2');
  });

  it('does not start with a file that is no ledger', () => {
    writeFileSync(path, 'hello\n');
    expect(open).toThrow('is not a ledger');
  });

  it('forgets a Commit that the source knows of, and leaves it out at the next start', () => {
    const ledger = open();
    ledger.record({ kind: 'committed', session: 'a' });
    ledger.record({ kind: 'committed', session: 'b' });
    ledger.forget('a');
    expect(ledger.hasCommitted('a')).toBe(false);
    const again = open();
    expect([again.hasCommitted('a'), again.hasCommitted('b')]).toEqual([false, true]);
    expect(readFileSync(path, 'utf8').trim().split('\n')).toHaveLength(2);
  });

  it("keeps an operator's decision", () => {
    open().record({ kind: 'overridden', session: 'a', decision: 'run' });
    open();
    expect(readFileSync(open() && path, 'utf8')).toContain('{"kind":"overridden","session":"a","decision":"run"}');
  });

  it('takes back what it could not sync, and records nothing for as long as nothing can be written', () => {
    const ledger = open();
    ledger.record({ kind: 'committed', session: 'a' });
    const fails = (): void => {
      throw new Error('EIO: i/o error');
    };
    expect(ledger.unwritable).toBeNull();
    vi.mocked(fsyncSync).mockImplementation(fails);
    const unwritable = { errno: 'EIO', reason: 'LEDGER_UNWRITABLE', details: { path, message: 'EIO: i/o error' } };
    expect(ledger.record({ kind: 'committed', session: 'b' })).toMatchObject(unwritable);
    expect(ledger.hasCommitted('b')).toBe(false);
    expect(ledger.record({ kind: 'committed', session: 'c' })).toMatchObject(unwritable);
    expect(ledger.unwritable).toMatchObject(unwritable);
    vi.mocked(fsyncSync).mockReset();
    const again = open();
    expect([again.hasCommitted('a'), again.hasCommitted('b'), again.hasCommitted('c')]).toEqual([true, false, false]);
  });

  it('begins a new file when it can be written again, without what could not be recorded', () => {
    const ledger = open();
    ledger.record({ kind: 'committed', session: 'a' });
    ledger.record({ kind: 'overridden', session: 'o', decision: 'run' });
    vi.mocked(fsyncSync).mockImplementationOnce(() => {
      throw new Error('EIO: i/o error');
    });
    ledger.record({ kind: 'committed', session: 'b' });
    ledger.forget('a');
    const before = statSync(path).ino;
    expect(ledger.unwritable).toBeNull();
    expect(statSync(path).ino).not.toBe(before);
    expect(ledger.record({ kind: 'committed', session: 'c' })).toBeNull();
    ledger.close();
    expect(open().records).toEqual([
      { kind: 'overridden', session: 'o', decision: 'run' },
      { kind: 'committed', session: 'c' },
    ]);
  });

  it('takes back what fitted on a full disk', () => {
    const ledger = open();
    vi.mocked(writeSync).mockImplementationOnce((fd) => {
      appendFileSync(fd, '{"kind"');
      return 7;
    });
    vi.mocked(writeSync).mockImplementationOnce(() => {
      throw new Error('ENOSPC: no space left on device');
    });
    expect(ledger.record({ kind: 'committed', session: 'b' })).toMatchObject({ reason: 'LEDGER_UNWRITABLE' });
    expect(readFileSync(path, 'utf8')).toBe('{"kind":"store","id":"store-1"}\n');
  });

  it('survives a daemon that is killed while it leaves out the obsolete', () => {
    open().record({ kind: 'committed', session: 'a' });
    writeFileSync(`${path}.new`, '{"kind":"sto');
    truncateSync(`${path}.new`, 5);
    expect(open().hasCommitted('a')).toBe(true);
  });
});
