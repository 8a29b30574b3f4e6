import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startWorld, type World } from '../../client/index.js';
import { runSimkvm } from '../helpers/run-simkvm.js';

const folder = mkdtempSync(join(tmpdir(), 'simkvm-certificates-'));
const file = (name: string): string => join(folder, name);

describe('simkvm certificates', () => {
  let world: World;
  beforeAll(async () => {
    world = await startWorld({ args: ['--snp'] });
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });
  const certificates = (...options: string[]) =>
    runSimkvm('certificates', '--target', world.daemon.target, '--out', folder, ...options);

  it('gives an owner what verifies the platform, and makes a session for it', async () => {
    expect(await certificates()).toMatchObject({ code: 0, error: '' });
    const options = [
      '--pdh',
      file('pdh.cert'),
      '--certs',
      file('chain.cert'),
      '--cek',
      file('cek.cert'),
      '--amd',
      file('amd.cert'),
    ];
    expect(await runSimkvm('attest', 'platform', ...options)).toMatchObject({
      code: 0,
      out: expect.stringContaining('the platform verifies'),
    });
    // What the chip exports by itself lacks the ASK's signature, which AMD's service adds.
    const bare = await runSimkvm('attest', 'platform', ...options.slice(0, 4), '--amd', file('amd.cert'));
    expect(bare).toMatchObject({ code: 1, out: expect.stringContaining('FAILED  the ASK has signed the CEK') });
    expect((await runSimkvm('session', 'create', '--pdh', file('pdh.cert'), '--policy', '1', '--out', folder)).code).toBe(0);

    await using kvm = await world.process.openKvm();
    await using sev = await world.process.openSev();
    await using vm = await kvm.createVm();
    await vm.sev.init();
    const [dh_uaddr_bytes, session_uaddr_bytes] = ['godh.cert', 'session.bin'].map(
      (name) => new Uint8Array(readFileSync(file(name))),
    );
    await vm.sev.launchStart({ policy: 1, dh_uaddr_bytes, session_uaddr_bytes }, sev.fd);
    const refused = await vm.sev.try.launchStart({ policy: 0, dh_uaddr_bytes, session_uaddr_bytes }, sev.fd);
    expect(refused.errno === null ? null : refused.error.fwError).toBe(0x0b);
  });

  it('gives chains that openssl verifies, also of a VLEK, which the host takes', async () => {
    expect((await certificates('--vlek', 'a cloud')).code).toBe(0);
    for (const chain of ['vcek-chain.pem', 'vlek-chain.pem'])
      expect(
        execFileSync('openssl', ['verify', '-CAfile', file('ark.pem'), '-untrusted', file(chain), file(chain)]).toString(),
      ).toContain('OK');
    await using sev = await world.process.openSev();
    await sev.snpVlekLoad({ vlek_wrapped_address_bytes: new Uint8Array(readFileSync(file('vlek.bin'))) });
    expect((await sev.snpPlatformStatus()).flags & 4).toBe(4);
  });

  it('says where files cannot be written', async () => {
    const refused = await runSimkvm('certificates', '--target', world.daemon.target, '--out', '/dev/null/here');
    expect(refused).toMatchObject({ code: 1, out: '', error: expect.stringContaining("'/dev/null/here' cannot be written to") });
  });
});
