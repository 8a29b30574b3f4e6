import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { launchDigest, launchMeasurement } from '../../../../client/guest-owner/index.js';
import { ATTESTATION } from '../../../../server/hardware/amd/command-buffers.js';
import { requires, VECTORS } from '../../../helpers/requirements.js';
import { runSimkvm } from '../../../helpers/run-simkvm.js';
import { targetCertificates } from '../../hardware/amd/guests.js';
import { createRig, set } from '../../hardware/amd/rig.js';
import { expectedText, flipped, hex, unhex, vector } from '../guest-owner/vectors.js';

const folder = mkdtempSync(join(tmpdir(), 'simkvm-owner-'));
afterAll(() => rmSync(folder, { recursive: true }));

const file = (name: string, contents: Uint8Array): string => {
  writeFileSync(join(folder, name), contents);
  return join(folder, name);
};
const written = (name: string): Uint8Array => new Uint8Array(readFileSync(join(folder, name)));
const path = (name: string): string => join(VECTORS, 'sev', name);

const rig = createRig();
rig.init();
const { pdh, chain, amd } = targetCertificates(rig);

describe('simkvm attest', () => {
  requires('vectors', 'public attestation reports');
  const report = () => unhex(new TextDecoder().decode(vector('snp-report/milan-v2-report.hex')).trim());
  const chainOptions = () => ['--chain', path('snp-report/milan-vcek.der'), '--chain', path('snp-report/milan-ask-ark.pem')];

  it('verifies a report, and says whose root it is', async () => {
    const verified = await runSimkvm('attest', 'verify', file('report.bin', report()), ...chainOptions(), '--policy', '0x30000');
    expect(verified).toMatchObject({ code: 0, error: '' });
    expect(verified.out).toContain("AMD's of Milan");
    expect(verified.out).toContain('the report verifies');
  });

  it('ends with 1 where one bit is another, or something else was expected', async () => {
    const altered = await runSimkvm('attest', 'verify', file('altered.bin', flipped(report(), 0x90 * 8)), ...chainOptions());
    expect(altered.code).toBe(1);
    expect(altered.out).toContain('FAILED  the report is signed by that key');
    expect((await runSimkvm('attest', 'verify', file('report.bin', report()), ...chainOptions(), '--policy', '1')).code).toBe(1);
  });

  it('says what is no report, no certificate and no file', async () => {
    expect(await runSimkvm('attest', 'verify', file('short.bin', new Uint8Array(3)), ...chainOptions())).toMatchObject({
      code: 1,
      error: expect.stringContaining('3 bytes instead of 1184'),
    });
    const noChain = await runSimkvm(
      'attest',
      'verify',
      file('report.bin', report()),
      '--chain',
      file('short.bin', new Uint8Array(3)),
    );
    expect(noChain).toMatchObject({ code: 1, error: expect.stringContaining('no X.509 certificates') });
    expect(noChain.error).toContain(join(folder, 'short.bin'));
    const noRoot = await runSimkvm(
      'attest',
      'verify',
      file('report.bin', report()),
      ...chainOptions(),
      '--root',
      path('amd-ca/milan-ark.cert'),
    );
    expect(noRoot).toMatchObject({ code: 1, error: expect.stringContaining('milan-ark.cert: no X.509 certificates') });
    expect((await runSimkvm('attest', 'verify', join(folder, 'nowhere'), ...chainOptions())).code).toBe(2);
  });

  it('computes digests of public images', async () => {
    const image = path('measure/ovmf_AmdSev_suffix.bin');
    const boot = ['--kernel', '/dev/null', '--append', 'console=ttyS0 loglevel=7'];
    const snp = await runSimkvm('digest', 'snp', '--ovmf', image, ...boot, '--sev-features', '0x21');
    expect(snp.out).toBe(expectedText('snpLaunchDigest', 'rows', 2, 'ld'));
    expect((await runSimkvm('digest', 'sev', '--ovmf', image, ...boot)).out).toBe(expectedText('legacy', 'ld256', 0, 'ld'));
    const es = await runSimkvm('digest', 'sev-es', '--ovmf', image, '--kernel', '/dev/null', '--vcpus', '4', '--json');
    expect(JSON.parse(es.out)).toEqual({ digest: expectedText('legacy', 'ld256', 3, 'ld') });
    expect(await runSimkvm('digest', 'sev', '--ovmf', image, '--append', 'x')).toMatchObject({ code: 1, out: '' });
    expect(await runSimkvm('digest', 'snp', '--ovmf', image, '--vcpus', '0')).toMatchObject({ code: 1, out: '' });
  });
});

describe('simkvm session, attest and secret', () => {
  const certificates = ['--pdh', file('pdh.cert', pdh), '--certs', file('chain.cert', chain), '--amd', file('amd.cert', amd)];

  it('verifies a platform', async () => {
    const verified = await runSimkvm('attest', 'platform', ...certificates);
    expect(verified).toMatchObject({ code: 0, error: '' });
    expect(verified.out).toContain("NOT one of AMD's");
    const foreign = ['--cek', file('cek.cert', createRig({ seed: 'other' }).processor.endorsedCek())];
    expect(await runSimkvm('attest', 'platform', ...certificates, ...foreign)).toMatchObject({
      code: 1,
      out: expect.stringContaining('FAILED  the CEK has signed the PEK'),
    });
  });

  it('verifies a report on a SEV guest, for its nonce and with its platform’s chain', async () => {
    const handle = rig.launchStart(2);
    const paddr = rig.place(new Uint8Array(208));
    const settings = [set(ATTESTATION.handle, handle), set(ATTESTATION.mnonce, new Uint8Array(16).fill(9))];
    rig.issue('ATTESTATION', ATTESTATION, ...settings, set(ATTESTATION.length, 208), set(ATTESTATION.paddr, paddr));
    const report = rig.cells(paddr, 208);
    const verify = (bytes: Uint8Array, ...options: string[]) =>
      runSimkvm('attest', 'sev-report', file('sev-report.bin', bytes), '--pek', file('chain.cert', chain), ...options);
    const nonce = ['--mnonce', '09'.repeat(16)];
    const genuine = await verify(report, ...nonce, '--policy', '2', '--digest', hex(launchDigest()));
    expect(genuine).toMatchObject({ code: 0, error: '', out: expect.stringContaining('the report verifies') });
    expect(await verify(flipped(report, 20 * 8), ...nonce)).toMatchObject({
      code: 1,
      out: expect.stringContaining('FAILED  the PEK has signed the report'),
    });
    expect((await verify(report, '--mnonce', '08'.repeat(16))).out).toContain('FAILED  the report is for this nonce');
    expect((await verify(report, ...nonce, '--policy', '3')).out).toContain('FAILED  the policy is the expected one (0x2)');
    expect((await verify(report.subarray(1), ...nonce)).error).toContain('the report has 207 bytes instead of 208');
    expect((await verify(report, '--mnonce', '09')).error).toContain('the nonce has 1 byte instead of 16');
  });

  it('says where files cannot be written', async () => {
    const created = await runSimkvm(
      'session',
      'create',
      '--pdh',
      file('pdh.cert', pdh),
      '--policy',
      '3',
      '--out',
      '/dev/null/here',
    );
    expect(created).toMatchObject({ code: 1, error: expect.stringContaining("'/dev/null/here' cannot be written to") });
  });

  it('makes a session, verifies the measurement that comes back, and seals a secret', async () => {
    expect((await runSimkvm('session', 'create', '--pdh', file('pdh.cert', pdh), '--policy', '3', '--out', folder)).code).toBe(0);
    expect(['session.bin', 'godh.cert', 'tek.bin', 'tik.bin'].map((name) => written(name).length)).toEqual([128, 2084, 16, 16]);
    const versions = ['--api-major', '1', '--api-minor', '55', '--build', '25', '--policy', '3'];
    const digest = ['--digest', '00'.repeat(32)];
    const measurement = file('measurement.bin', new Uint8Array(48));
    const keys = ['--tik', join(folder, 'tik.bin')];
    const verified = await runSimkvm('attest', 'measurement', measurement, ...keys, ...digest, ...versions);
    expect(verified).toMatchObject({ code: 1, out: 'the measurement does NOT verify' });
    const beyond = await runSimkvm('attest', 'measurement', measurement, ...keys, ...digest, ...versions, '--build', '256');
    expect(beyond).toMatchObject({ code: 2, error: expect.stringContaining("'256' is no whole number from 0 to 255") });
    const measured = { apiMajor: 1, apiMinor: 55, build: 25, policy: 3, digest: new Uint8Array(32) };
    const genuine = Buffer.concat([launchMeasurement(written('tik.bin'), measured, new Uint8Array(16)), new Uint8Array(16)]);
    expect(await runSimkvm('attest', 'measurement', file('genuine.bin', genuine), ...keys, ...digest, ...versions)).toMatchObject(
      {
        code: 0,
        out: 'the measurement verifies',
      },
    );
    const secret = ['--secret', `736869e5-84f0-4973-92ec-06879ce3da0b=${file('passphrase', Buffer.from('secret'))}`];
    const seal = ['secret', 'seal', '--tek', join(folder, 'tek.bin'), ...keys, '--measurement', measurement];
    expect((await runSimkvm(...seal, ...secret, '--out', folder)).code).toBe(0);
    expect(['header.bin', 'secret.bin'].map((name) => written(name).length)).toEqual([52, 48]);
    expect((await runSimkvm(...seal, '--secret', 'nonsense', '--out', folder)).code).toBe(2);
    expect(await runSimkvm(...seal, '--secret', `nonsense=${measurement}`, '--out', folder)).toMatchObject({
      code: 1,
      error: expect.stringContaining('no GUID'),
    });
  });
});
