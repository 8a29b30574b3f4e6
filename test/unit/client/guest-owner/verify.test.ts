import { X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  createReportVerifier,
  sealSecret,
  secretTable,
  verifyIdBlock,
  verifyPlatform,
  verifyReport,
} from '../../../../client/guest-owner/index.js';
import { reportKeyExtensions } from '../../../../client/guest-owner/report-key.js';
import {
  isEndorsedBy,
  isSignedBy,
  isSignedByAmd,
  parseAmdCertificate,
  parseSevCertificate,
} from '../../../../client/guest-owner/sev-certificate.js';
import { requires } from '../../../helpers/requirements.js';
import { expectedText, flipped, hex, unhex, vector } from './vectors.js';

const AT = new Date('2024-06-01T00:00:00Z');
const milanReport = () => unhex(new TextDecoder().decode(vector('snp-report/milan-v2-report.hex')).trim());
const milanChain = () => [vector('snp-report/milan-vcek.der'), vector('snp-report/milan-ask-ark.pem')];
/** Of ASK and ARK the latter. */
const turinRoot = () => {
  const chain = Buffer.from(vector('snp-report/turin-ask-ark.pem'));
  return chain.subarray(chain.lastIndexOf('-----BEGIN'));
};
const gosevChain = () => [vector('snp-report/gosev-vcek.der'), vector('snp-report/milan-ask-ark.pem')];

describe('public attestation reports', () => {
  requires('vectors', 'public attestation reports and their chains');

  it.each([
    ['sev', milanReport, milanChain, 0],
    ['go-sev-guest', () => vector('snp-report/gosev-attestation.bin'), gosevChain, 1],
  ] as const)('of %s verify with the chain of a real root', (_name, report, chain, row) => {
    const verified = verifyReport(report(), { chain: chain(), at: AT });
    expect(verified.checks.filter(({ ok }) => !ok)).toEqual([]);
    expect(verified.root?.amdProduct).toBe('Milan');
    expect(verified.report.policy).toBe(BigInt(expectedText('reports', row, 'policy')));
    expect(hex(verified.report.reportedTcb)).toBe(expectedText('reports', row, 'reportedTcbBytes'));
  });

  it('fail with a bit flipped anywhere in the signed part or the signature', () => {
    const genuine = milanReport();
    const verify = createReportVerifier({ chain: milanChain(), at: AT });
    for (let byte = 0; byte < 0x2a0 + 144; byte++) {
      const altered = flipped(genuine, byte * 8 + (byte % 8));
      let ok = false;
      try {
        ({ ok } = verify(altered));
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError);
      }
      expect(ok, `byte ${byte}`).toBe(false);
    }
  });

  it('fail with another chip’s key, a broken chain, or at a time when a certificate is not valid', () => {
    const failing = (options: Parameters<typeof verifyReport>[1]) =>
      verifyReport(milanReport(), options)
        .checks.filter(({ ok }) => !ok)
        .map(({ name }) => name);
    expect(failing({ chain: gosevChain(), at: AT })).toContain('the report is signed by that key');
    expect(failing({ chain: [vector('snp-report/milan-vcek.der')], at: AT })).toEqual(['the chain is complete']);
    expect(failing({ chain: [vector('snp-report/turin-ask-ark.pem'), ...milanChain().slice(0, 1)], at: AT })).toEqual([
      'the chain is complete',
    ]);
    expect(failing({ chain: milanChain(), at: new Date('2010-01-01') })).toEqual(['the certificates are valid']);
    expect(failing({ chain: milanChain(), at: AT, trustedRoot: turinRoot() })).toEqual(['the chain ends in the trusted root']);
  });

  it('are held against what their owner expects', () => {
    const { report } = verifyReport(milanReport(), { chain: milanChain(), at: AT });
    const verify = (expected: Parameters<typeof verifyReport>[1]['expected'] & object) =>
      verifyReport(milanReport(), { chain: milanChain(), at: AT, expected }).ok;
    const { measurement, reportData, hostData, policy, vmpl } = report;
    expect(verify({ measurement, reportData, hostData, policy, vmpl })).toBe(true);
    expect(verify({ measurement: flipped(measurement, 0) })).toBe(false);
    expect(verify({ reportData: reportData.subarray(0, 63) })).toBe(false);
    expect(verify({ policy: policy ^ 1n })).toBe(false);
    expect(verify({ policyForbids: 1n << 16n })).toBe(false);
    expect(verify({ policyForbids: 1n << 19n })).toBe(true);
    expect(verify({ vmpl: vmpl + 1 })).toBe(false);
  });

  it('are not held against what no report can have', () => {
    const verify = (expected: Parameters<typeof verifyReport>[1]['expected'] & object) => () =>
      verifyReport(milanReport(), { chain: milanChain(), at: AT, expected });
    expect(verify({ reportData: new Uint8Array(65) })).toThrow('report data have 65 bytes, and a report has room for 64');
    expect(verify({ hostData: new Uint8Array(33) })).toThrow('host data have 33 bytes, and a report has room for 32');
    expect(verify({ measurement: new Uint8Array(32) })).toThrow('the expected measurement has 32 bytes instead of 48');
  });

  it('say what they have and what was expected, where that is something else', () => {
    const detailOf = (name: string, options: Partial<Parameters<typeof verifyReport>[1]>, report = milanReport()) =>
      verifyReport(report, { chain: milanChain(), at: AT, ...options }).checks.find((check) => check.name === name)?.detail;
    const { report } = verifyReport(milanReport(), { chain: milanChain(), at: AT });
    expect(detailOf('the policy is the expected one', { expected: { policy: 1n } })).toBe('0x30000, expected 0x1');
    expect(detailOf('the policy allows nothing forbidden', { expected: { policyForbids: 0x10000n } })).toBe(
      '0x30000, of which 0x10000 is forbidden',
    );
    const wanted = new Uint8Array(48);
    expect(detailOf('the measurement is the expected one', { expected: { measurement: wanted } })).toBe(
      `${hex(report.measurement)}, expected ${hex(wanted)}`,
    );
    expect(detailOf('the certificate is the reporting chip’s', { chain: gosevChain() })).toMatch(
      /^3ac3fe21.*, reported d49554ec/,
    );
    expect(detailOf('the certificates are valid', { at: new Date('2010-01-01') })).toMatch(
      /^SEV-VCEK is from .* 2023 .* to .* 2030 /,
    );
    const root = detailOf('the chain ends in the trusted root', { trustedRoot: turinRoot() });
    expect(root).toMatch(/of ARK-Milan, not in [\da-f]{64} of ARK-Turin$/);
    expect(detailOf('the chain is complete', { chain: milanChain().slice(0, 1) })).toBe(
      'there is no certificate of the ASK, SEV-Milan',
    );
    const masked = milanReport();
    masked[0x48] = (masked[0x48] ?? 0) | (7 << 2);
    expect(detailOf('the report is signed by that key', {}, masked)).toBe('the platform is set to sign no reports');
  });

  it('find their key among several', () => {
    const chain = [...gosevChain(), ...milanChain().slice(0, 1)];
    const verify = createReportVerifier({ chain, at: AT });
    expect([milanReport(), vector('snp-report/gosev-attestation.bin')].map((report) => verify(report).ok)).toEqual([true, true]);
  });

  it('of Turin chips have certificates with another layout of the TCB version', () => {
    const certificate = new X509Certificate(vector('snp-report/turin-vcek.der'));
    expect(hex(reportKeyExtensions(certificate).chipId ?? new Uint8Array(0))).toBe('1e550a8ee5cf9f4d');
    const { report, checks } = verifyReport(milanReport(), {
      chain: [vector('snp-report/turin-vcek.der'), vector('snp-report/turin-ask-ark.pem')],
      at: new Date('2025-09-01'),
    });
    const failed = checks.filter(({ ok }) => !ok).map(({ name }) => name);
    expect(report.version).toBe(2);
    expect(failed).toEqual([
      'the report is signed by that key',
      'the certificate is for the reported TCB version',
      'the certificate is the reporting chip’s',
    ]);
  });
});

describe('public certificates of SEV platforms', () => {
  requires('vectors', 'public platform certificates');
  const ca = (product: string, usage: 'ARK' | 'ASK') =>
    parseAmdCertificate(vector(`amd-ca/${product}-${usage.toLowerCase()}.cert`), usage);

  it.each(['naples', 'rome', 'milan', 'genoa', 'turin'])('AMD’s own, of %s', (product) => {
    const [ark, ask] = [ca(product, 'ARK'), ca(product, 'ASK')];
    expect([isSignedByAmd(ark, ark), isSignedByAmd(ask, ark), isSignedByAmd(ark, ask)]).toEqual([true, true, false]);
    expect(hex(ark.keyId)).toBe(expectedText('amdCaKeyIds', product, 'ark'));
  });

  it.each([
    ['naples', 'Naples'],
    ['rome', 'Rome'],
  ])('a platform of %s, and whose root it has', (product, name) => {
    const file = (role: string) => vector(`legacy-certs/${product}/${role}.cert`);
    const amd = Buffer.concat([vector(`amd-ca/${product}-ask.cert`), vector(`amd-ca/${product}-ark.cert`)]);
    const chain = Buffer.concat([file('pek'), file('oca'), file('cek')]);
    const { ok, root } = verifyPlatform({ pdh: file('pdh'), chain, amd });
    expect([ok, root.amdProduct]).toEqual([true, name]);
    expect(() => verifyPlatform({ pdh: file('pdh'), chain: chain.subarray(1), amd })).toThrow('6251 bytes instead of 6252');
    const swapped = Buffer.concat([vector(`amd-ca/${product}-ark.cert`), vector(`amd-ca/${product}-ask.cert`)]);
    expect(() => verifyPlatform({ pdh: file('pdh'), chain, amd: swapped })).toThrow('no ASK certificate: its usage is 0x0');
  });

  it.each(['naples', 'rome'])('the certificates of a platform of %s', (product) => {
    const file = (name: string) => vector(`legacy-certs/${product}/${name}.cert`);
    const [pdh, pek] = [parseSevCertificate(file('pdh'), 'PDH'), parseSevCertificate(file('pek'), 'PEK')];
    const [oca, cek] = [parseSevCertificate(file('oca'), 'OCA'), parseSevCertificate(file('cek'), 'CEK')];
    expect([isSignedBy(pdh, pek), isSignedBy(pek, oca), isSignedBy(pek, cek), isSignedBy(oca, oca)]).toEqual([
      true,
      true,
      true,
      true,
    ]);
    expect(isEndorsedBy(cek, ca(product, 'ASK'))).toBe(true);
    expect(isEndorsedBy(cek, ca('genoa', 'ASK'))).toBe(false);
    for (const bit of [33, 0x100 * 8, 0x413 * 8]) expect(isSignedBy({ ...pdh, bytes: flipped(pdh.bytes, bit) }, pek)).toBe(false);
    expect(() => parseSevCertificate(file('pek'), 'PDH')).toThrow(RangeError);
  });
});

describe('public secrets and ID blocks', () => {
  requires('vectors', 'public secrets and ID blocks');

  it('a secret of sevctl is sealed to the byte', () => {
    const text = (name: string) => expectedText('legacy', 'launchSecret', name);
    const table = secretTable([{ guid: text('guid'), data: vector('sevctl/secret-secret1.txt') }]);
    const keys = { tek: vector('sevctl/secret-tek1.bin'), tik: vector('sevctl/secret-tik1.bin') };
    const { header, data } = sealSecret(keys, unhex(text('measureBlob48')), table, unhex(text('iv')));
    expect([hex(header), hex(data)]).toEqual([text('header52'), text('payload')]);
  });

  it('a secret is not sealed with what no secret has', () => {
    const keys = { tek: new Uint8Array(16), tik: new Uint8Array(16) };
    const [measurement, secret] = [new Uint8Array(48), new Uint8Array(16)];
    expect(() => sealSecret({ ...keys, tek: new Uint8Array(15) }, measurement, secret)).toThrow(
      '(TEK) has 15 bytes instead of 16',
    );
    expect(() => sealSecret({ ...keys, tik: new Uint8Array(32) }, measurement, secret)).toThrow(
      '(TIK) has 32 bytes instead of 16',
    );
    expect(() => sealSecret(keys, measurement.subarray(1), secret)).toThrow('the measurement has 47 bytes instead of 48');
    expect(() => sealSecret(keys, measurement, secret.subarray(1))).toThrow('this one has 15 bytes');
    expect(() => sealSecret(keys, measurement, new Uint8Array(16400))).toThrow(
      'has 16400 bytes with its table, and the firmware takes 16384',
    );
    expect(sealSecret(keys, measurement, new Uint8Array(16384)).data.length).toBe(16384);
  });

  it('an ID block verifies, and none of its bits may be another', () => {
    const [block, auth] = [vector('idblock/id-block.bin'), vector('idblock/id-auth.bin')];
    const verified = verifyIdBlock(block, auth);
    expect(hex(verified?.idKeyDigest ?? new Uint8Array(0))).toBe(expectedText('idBlock', 'idKeyDigest'));
    expect(hex(verified?.authorKeyDigest ?? new Uint8Array(0))).toBe(expectedText('idBlock', 'authorKeyDigest'));
    for (let byte = 0; byte < block.length; byte++) expect(verifyIdBlock(flipped(block, byte * 8), auth)).toBeNull();
    for (const offset of [0x40, 0x88, 0x240 + 4, 0x680, 0x880 + 4])
      expect(verifyIdBlock(block, flipped(auth, offset * 8))).toBeNull();
    expect(() => verifyIdBlock(block.subarray(1), auth)).toThrow('the ID block has 95 bytes instead of 96');
    expect(() => verifyIdBlock(block, block)).toThrow('the authentication information has 96 bytes instead of 4096');
  });
});
