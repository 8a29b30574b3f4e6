import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';

const CONFIG = resolve('.dependency-cruiser.cjs');
const FIXTURE = resolve('test/layers/fixture');

/** Runs the layer check in a folder as `npm run layers` does in the project. */
const cruise = (cwd: string, ...folders: string[]): { status: number | null; output: string } => {
  const depcruise = resolve('node_modules/.bin/depcruise');
  const { status, stdout, stderr } = spawnSync(depcruise, ['--config', CONFIG, ...folders], { cwd, encoding: 'utf8' });
  return { status, output: `${stdout}${stderr}` };
};

describe('the layer check', () => {
  const result = cruise(FIXTURE, 'server', 'client');

  test('refuses a project with imports that point up', () => {
    expect(result.status).not.toBe(0);
  });

  test.each([
    ['hardware-knows-no-kernel', 'server/hardware/dram.ts → server/kernel/vm.ts'],
    ['kernel-knows-hardware-only', 'server/kernel/vm.ts → server/migration/session.ts'],
    ['migration-knows-no-rpc', 'server/migration/session.ts → server/rpc/dispatch.ts'],
    ['server-not-to-client', 'server/rpc/dispatch.ts → client/sdk.ts'],
    ['client-imports-generated-code-only', 'client/cheat.ts → server/kernel/vm.ts'],
    ['nothing-outside-below-rpc', 'server/kernel/vm.ts → net'],
    ['no-grpc-below-rpc', 'server/kernel/vcpu.ts → '],
    ['no-cycle', 'server/kernel/vcpu.ts → \n      server/kernel/vm.ts'],
  ])('%s names the import that breaks it', (rule, edge) => {
    expect(result.output).toContain(`error ${rule}: ${edge}`);
  });

  test('every rule has its example here, but for what cannot be resolved', () => {
    const rules = [...readFileSync(CONFIG, 'utf8').matchAll(/name: '([a-z-]+)'/g)].map(([, name]) => name);
    const broken = rules.filter((rule) => result.output.includes(`error ${rule}:`));
    expect(broken).toEqual(rules.filter((rule) => rule !== 'not-to-unresolvable'));
  });

  test('passes a folder that imports only downwards', () => {
    expect(cruise(join(FIXTURE, '..'), 'clean')).toMatchObject({ status: 0 });
  });
});

/** All TypeScript files of a folder; none if there is no such folder. */
const sources = (folder: string): string[] =>
  existsSync(folder)
    ? readdirSync(folder, { recursive: true, encoding: 'utf8' })
        .filter((file) => file.endsWith('.ts'))
        .map((file) => join(folder, file))
    : [];

describe('the deterministic layers', () => {
  // A linter knows globals and not members of Math and Date, so the source is read here.
  const FORBIDDEN =
    /\b(Math\.random|Date\.now|new Date\b|performance\.now|setTimeout|setInterval|setImmediate|process\.(hrtime|nextTick|env)\b)/;

  test.each(['hardware', 'kernel', 'migration'])('server/%s takes no time and no chance from outside', (layer) => {
    const offenders = sources(`server/${layer}`).flatMap((file) =>
      readFileSync(file, 'utf8')
        .split('\n')
        .map((line, index) => ({ line, at: `${file}:${index + 1}` }))
        .filter(({ line }) => !/^\s*(\*|\/\*|\/\/)/.test(line) && FORBIDDEN.test(line))
        .map(({ line, at }) => `${at}: ${line.trim()}`),
    );
    expect(offenders).toEqual([]);
  });
});
