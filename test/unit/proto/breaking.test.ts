import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

const BASELINE = resolve('proto/baseline.binpb');
const BUF = resolve('node_modules/.bin/buf');

describe('the check against the last release', () => {
  let copy = '';

  beforeEach(() => {
    copy = mkdtempSync(join(tmpdir(), 'simkvm-proto-'));
    cpSync('proto', join(copy, 'proto'), { recursive: true });
    cpSync('buf.yaml', join(copy, 'buf.yaml'));
  });
  afterEach(() => rmSync(copy, { recursive: true }));

  const breaking = (): { status: number | null; output: string } => {
    const { status, stdout, stderr } = spawnSync(BUF, ['breaking', '--against', BASELINE], { cwd: copy, encoding: 'utf8' });
    return { status, output: `${stdout}${stderr}` };
  };

  const edit = (file: string, from: string, to: string): void => {
    const path = join(copy, 'proto/simkvm/v1', file);
    const text = readFileSync(path, 'utf8');
    expect(text).toContain(from);
    writeFileSync(path, text.replace(from, to));
  };

  test('passes the contract as it is', () => {
    expect(breaking()).toEqual({ status: 0, output: '' });
  });

  test('refuses to lose a field', () => {
    edit('kvm_structs.proto', '  // Bytes: 1, 2, 4 or 8; 0 matches any length.\n  optional uint32 len = 3;\n', '');
    const { status, output } = breaking();
    expect(status).not.toBe(0);
    expect(output).toMatch(/field "3" with name "len" on message "KvmIoeventfd"/);
  });

  test('refuses another type, another number and another name', () => {
    edit('kvm_structs.proto', 'uint64 datamatch = 1;', 'uint32 datamatch = 1;');
    edit('kvm_structs.proto', 'optional uint32 gsi = 2;', 'optional uint32 gsi = 9;');
    edit('sev_structs.proto', 'uint32 ghcb_version = 3;', 'uint32 ghcb = 3;');
    const { output } = breaking();
    expect(output).toMatch(/"datamatch" on message "KvmIoeventfd" changed type/);
    expect(output).toMatch(/field "2" with name "gsi" on message "KvmIrqfd" was deleted/);
    expect(output).toMatch(/changed name from "ghcb_version" to "ghcb"/);
  });

  test('takes a new field', () => {
    edit('kvm_structs.proto', '  uint64 datamatch = 1;\n', '  uint64 datamatch = 1;\n  // New.\n  uint32 later = 99;\n');
    expect(breaking().status).toBe(0);
  });
});
