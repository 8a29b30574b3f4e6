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

describe('what an owner may give by mistake', () => {
  requires('vectors', 'public attestation reports and certificates');
  const report = () => unhex(new TextDecoder().decode(vector('snp-report/milan-v2-report.hex')).trim());
  const authorities = () => vector('snp-report/milan-ask-ark.pem');
  const vcek = () => path('snp-report/milan-vcek.der');
  const image = () => path('measure/ovmf_AmdSev_suffix.bin');
  const bundle = (...names: string[]) => Buffer.concat(names.map((name) => vector(`amd-ca/${name}.cert`)));
  const platform = () => ['--pdh', path('legacy-certs/rome/pdh.cert'), '--certs', file('rome.chain', romeChain())];
  const romeChain = () => Buffer.concat(['pek', 'oca', 'cek'].map((name) => vector(`legacy-certs/rome/${name}.cert`)));
  /** With a section of the metadata changed: 4 bytes at `offset` behind the head of the first. */
  const withSection = (offset: number, value: number): Uint8Array => {
    const bytes = Buffer.from(vector('measure/ovmf_AmdSev_suffix.bin'));
    bytes.writeUInt32LE(value, bytes.indexOf('ASEV') + 16 + offset);
    return bytes;
  };
  const verify = (...args: string[]) => ['attest', 'verify', ...args];
  const genuine = () => [file('given.bin', report()), '--chain', vcek(), '--chain', path('snp-report/milan-ask-ark.pem')];
  const response = () =>
    Buffer.concat([Buffer.from([0, 0, 0, 0, 0xa0, 4, 0, 0]), new Uint8Array(24), report(), new Uint8Array(9)]);
  const measure = (given: Uint8Array) =>
    'attest measurement M --tik T --policy 0 --api-major 1 --api-minor 55 --build 25 --digest'
      .split(' ')
      .map((word) => ({ M: file('given.bin', given), T: path('sevctl/measurement-tik1.bin') })[word] ?? word)
      .concat('00'.repeat(32));

  const mistakes: readonly (readonly [name: string, args: () => string[], says: string])[] = [
    [
      'a report in hex',
      () => verify(file('given.hex', Buffer.from(hex(report()))), '--chain', vcek()),
      'given.hex: no report: 2368 bytes instead of 1184, which are 1184 in hex',
    ],
    [
      'a report in base64, in lines',
      () =>
        verify(
          file('given.b64', Buffer.from(Buffer.from(report()).toString('base64').replace(/.{64}/g, '$&\n'))),
          '--chain',
          vcek(),
        ),
      'which are 1184 in base64: decode it',
    ],
    [
      'a truncated report',
      () => verify(file('given.bin', report().subarray(0, 1000)), '--chain', vcek()),
      '1000 bytes instead of 1184',
    ],
    [
      'a response with a report in it',
      () => verify(file('given.bin', response()), '--chain', vcek()),
      'it is a response, which has the report behind its first 32 bytes',
    ],
    [
      'a report with certificates behind it',
      () => verify(file('given.bin', Buffer.concat([report(), new Uint8Array(24)])), '--chain', vcek()),
      'what is behind the report does not belong to it',
    ],
    [
      'a report of a version to come',
      () => verify(file('given.bin', report().with(0, 6)), '--chain', vcek()),
      'given.bin: a report of version 6, not of one from 2 to 5',
    ],
    [
      'a chain whose last certificate is cut off',
      () => verify(file('given.bin', report()), '--chain', file('cut.pem', authorities().subarray(0, -200))),
      'cut.pem: certificate 2 of 2 (PEM) is cut off',
    ],
    [
      'a chain with a damaged certificate',
      () => verify(file('given.bin', report()), '--chain', file('bad.pem', Buffer.from(authorities()).fill('A', 100, 200))),
      'bad.pem: certificate 1 of 2 (PEM) is no X.509 certificate',
    ],
    [
      'a chain for the root',
      () => verify(...genuine(), '--root', path('snp-report/milan-ask-ark.pem')),
      'milan-ask-ark.pem: 2 certificates, where one is wanted',
    ],
    ['a VMPL that there is not', () => verify(...genuine(), '--vmpl', '4'), "'4' is no VMPL: 0 to 3"],
    [
      'hex with 0x',
      () => verify(...genuine(), '--measurement', '0xab'),
      "'0xab' is no string of bytes in hex: two digits each, without 0x",
    ],
    [
      'a policy of more than 64 bits',
      () => verify(...genuine(), '--policy', '18446744073709551616'),
      "'18446744073709551616' is no whole number from 0 to 0xffffffffffffffff",
    ],
    [
      'a PEK for the PDH',
      () => [
        'attest',
        'platform',
        '--pdh',
        path('legacy-certs/rome/pek.cert'),
        ...platform().slice(2),
        '--amd',
        file('amd', bundle('rome-ask', 'rome-ark')),
      ],
      'pek.cert: no PDH certificate: its usage is 0x1002 (PEK), not 0x1003',
    ],
    [
      'ARK before ASK',
      () => ['attest', 'platform', ...platform(), '--amd', file('reversed', bundle('rome-ark', 'rome-ask'))],
      'reversed: no ASK certificate: its usage is 0x0 (ARK), not 0x13',
    ],
    [
      'an ASK without the ARK',
      () => ['attest', 'platform', ...platform(), '--amd', path('amd-ca/rome-ask.cert')],
      'rome-ask.cert: no ASK and ARK: 1600 bytes, which are not 1664 on keys of 2048 bits or 3200 on 4096',
    ],
    [
      'ASK and ARK as PEM',
      () => ['attest', 'platform', ...platform(), '--amd', path('snp-report/milan-ask-ark.pem')],
      'it is PEM, and not the SEV API’s own format',
    ],
    [
      'a VCEK for the CEK',
      () => ['attest', 'platform', ...platform(), '--cek', vcek(), '--amd', file('amd', bundle('rome-ask', 'rome-ark'))],
      'milan-vcek.der: no CEK certificate: 1360 bytes instead of 2084',
    ],
    [
      'a measurement as QEMU prints it',
      () => measure(Buffer.from(Buffer.alloc(48, 1).toString('base64'))),
      'the measurement has 64 bytes instead of 48, which are 48 in base64: decode it',
    ],
    [
      'a policy with reserved bits',
      () => ['session', 'create', '--pdh', path('legacy-certs/rome/pdh.cert'), '--policy', '0x140', '--out', folder],
      'the policy 0x140 has reserved bits; bits of 0xffff003f are allowed',
    ],
    [
      'a CPU model that QEMU has not',
      () => ['digest', 'snp', '--ovmf', image(), '--cpu-signature', 'EPYC-Zen'],
      'none of EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa',
    ],
    [
      'SEV_FEATURES without SEV-SNP',
      () => ['digest', 'snp', '--ovmf', image(), '--sev-features', '0x20'],
      'SEV_FEATURES are 0x20, and bit 0',
    ],
    [
      'an image with a section between pages',
      () => ['digest', 'snp', '--ovmf', file('given.fd', withSection(0, 0x80_0001))],
      'a section of type 1 with 0x9000 bytes at 0x800001, which are no whole pages of 4096',
    ],
    [
      'an image with half a page',
      () => ['digest', 'snp', '--ovmf', file('given.fd', withSection(4, 0x800))],
      'with 0x800 bytes at 0x800000',
    ],
  ];

  it.each(mistakes)('%s is named, with what is allowed', async (_, args, says) => {
    const { code, out, error } = await runSimkvm(...args());
    expect(code).not.toBe(0);
    expect(out).toBe('');
    expect(error).toContain(says);
  });

  it('takes the largest policy, and the signature of a CPU by the name of its model and version', async () => {
    const verified = await runSimkvm(...verify(...genuine(), '--policy', '18446744073709551615'));
    expect(verified.out).toContain('FAILED  the policy is the expected one (0x30000, expected 0xffffffffffffffff)');
    const digest = async (...options: string[]) => (await runSimkvm('digest', 'snp', '--ovmf', image(), ...options)).out;
    expect(await digest('--cpu-signature', 'EPYC-v4')).toBe(await digest());
    expect(await digest('--cpu-signature', 'EPYC-Milan-v2')).toBe(await digest('--cpu-signature', '0xa00f11'));
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
