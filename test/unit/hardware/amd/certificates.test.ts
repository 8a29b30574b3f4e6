import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  type AmdCertificate,
  type AmdUsage,
  isEndorsedBy,
  isSameAmdKey,
  isSignedByAmd,
  parseAmdCertificate,
} from '../../../../server/hardware/amd/amd-certificate.js';
import {
  type Certificate,
  createCertificate,
  isSignedBy,
  parseCertificate,
  SEV_CERTIFICATE,
  USAGE,
  type Usage,
} from '../../../../server/hardware/amd/certificates.js';
import { createKeyDistribution } from '../../../../server/hardware/amd/key-distribution.js';
import { keyPair, sharedSecret, sign, verifySignature } from '../../../../server/hardware/amd/p384.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { createRig, hex, unhex, VECTORS_NEEDED, vector, vectorsAbsent } from './rig.js';

function parse(bytes: Uint8Array, usage: Usage): Certificate {
  const certificate = parseCertificate(bytes, usage);
  if (certificate === null) throw new Error('the certificate does not parse');
  return certificate;
}

function parseAmd(bytes: Uint8Array, usage: AmdUsage): AmdCertificate {
  const certificate = parseAmdCertificate(bytes, usage);
  if (certificate === null) throw new Error('the AMD certificate does not parse');
  return certificate;
}

const flip = (bytes: Uint8Array, at: number): Uint8Array => bytes.map((byte, index) => (index === at ? byte ^ 1 : byte));

describe('ECDSA on P-384', () => {
  const privateKey = unhex('6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d896d5724e4c70a825f872c9ea60d2edf5');
  const message = Buffer.from('sample');

  it('uses the nonce of RFC 6979 (appendix A.2.6)', () => {
    const sha384 = sign('sha384', privateKey, message);
    expect(hex(sha384.r)).toBe(
      '94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46',
    );
    expect(hex(sha384.s)).toBe(
      '99ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8',
    );
    const sha256 = sign('sha256', privateKey, message);
    expect(hex(sha256.r)).toBe(
      '21b13d1e013c7fa1392d03c5f99af8b30c570c6f98d4ea8e354b63a21d3daa33bde1e888e63355d92fa2b3c36d8fb2cd',
    );
  });

  it('verifies what it signed, and not another message, key or curve point', () => {
    const { publicKey } = keyPair(privateKey);
    const signature = sign('sha384', privateKey, message);
    expect(verifySignature('sha384', publicKey, message, signature)).toBe(true);
    expect(verifySignature('sha384', publicKey, Buffer.from('simple'), signature)).toBe(false);
    expect(verifySignature('sha384', { ...publicKey, x: flip(publicKey.x, 47) }, message, signature)).toBe(false);
    expect(sharedSecret(privateKey, { ...publicKey, x: flip(publicKey.x, 47) })).toBe(null);
  });
});

describe.skipIf(vectorsAbsent)(`AMD's public certificates (${VECTORS_NEEDED})`, () => {
  for (const product of ['naples', 'rome', 'milan', 'genoa', 'turin']) {
    it(`of ${product}: the ARK signed itself and the ASK`, () => {
      const ark = parseAmd(vector(`amd-ca/${product}-ark.cert`), USAGE.ARK);
      const askBytes = vector(`amd-ca/${product}-ask.cert`);
      const ask = parseAmd(askBytes, USAGE.ASK);
      expect(isSignedByAmd(ark, ark)).toBe(true);
      expect(isSignedByAmd(ask, ark)).toBe(true);
      for (const at of [4, 64, askBytes.length / 2, askBytes.length - 1]) {
        expect(isSignedByAmd(parseAmd(flip(askBytes, at), USAGE.ASK), ark)).toBe(false);
      }
    });
  }

  it('are not taken when truncated', () => {
    expect(parseAmdCertificate(vector('legacy-certs/naples/ark.cert.bad'), USAGE.ARK)).toBe(null);
  });

  for (const product of ['naples', 'rome']) {
    it(`of a real ${product} platform chain from the PDH to the chip`, () => {
      const read = (name: string, usage: Usage): Certificate => parse(vector(`legacy-certs/${product}/${name}.cert`), usage);
      const [cek, oca, pek, pdh] = [
        read('cek', USAGE.CEK),
        read('oca', USAGE.OCA),
        read('pek', USAGE.PEK),
        read('pdh', USAGE.PDH),
      ];
      expect(isSignedBy(oca, oca)).toBe(true);
      expect(isSignedBy(pek, oca)).toBe(true);
      expect(isSignedBy(pek, cek)).toBe(true);
      expect(isSignedBy(pdh, pek)).toBe(true);
      expect(isSignedBy(pdh, oca)).toBe(false);
      const ask = parseAmd(vector(`amd-ca/${product}-ask.cert`), USAGE.ASK);
      if (SEV_CERTIFICATE.sig1Usage.get(cek.bytes) === USAGE.ASK) expect(isEndorsedBy(cek, ask)).toBe(true);
      for (const at of [0x4, 0x14, 0x413]) {
        const altered = parseCertificate(flip(pdh.bytes, at), USAGE.PDH);
        expect(altered !== null && isSignedBy(altered, pek)).toBe(false);
      }
    });
  }
});

describe('a signature slot', () => {
  it('counts only in the usage that it names', () => {
    const key = keyPair(createEntropy('owner').bytes(48));
    const oca = parse(
      createCertificate(USAGE.OCA, key.publicKey, { major: 1, minor: 55 }, [{ usage: USAGE.OCA, key }]),
      USAGE.OCA,
    );
    expect(isSignedBy(oca, oca)).toBe(true);
    const renamed = Uint8Array.from(oca.bytes);
    SEV_CERTIFICATE.sig1Usage.set(renamed, USAGE.PEK);
    expect(isSignedBy(parse(renamed, USAGE.OCA), oca)).toBe(false);
  });
});

describe('the simulated root', () => {
  it('is one and the same for every host, signs itself and the ASK, and endorses chips', () => {
    const [one, two] = [createKeyDistribution(), createKeyDistribution()];
    expect(createHash('sha256').update(one.bundle()).digest('hex')).toBe(createHash('sha256').update(two.bundle()).digest('hex'));
    expect(one.bundle().length).toBe(3200);
    const [ark, ask] = [parseAmd(one.ark(), USAGE.ARK), parseAmd(one.ask(), USAGE.ASK)];
    expect(isSameAmdKey(ark, two.root())).toBe(true);
    expect(isSignedByAmd(ark, ark)).toBe(true);
    expect(isSignedByAmd(ask, ark)).toBe(true);
    const cek = parse(createRig().processor.endorsedCek(), USAGE.CEK);
    expect(isEndorsedBy(cek, ask)).toBe(true);
    expect(isEndorsedBy(parse(flip(cek.bytes, 4), USAGE.CEK), ask)).toBe(false);
  });

  it('endorses the chip that asks, whichever asked before, and whatever is done to what it got', () => {
    const distribution = createKeyDistribution();
    const ask = parseAmd(distribution.ask(), USAGE.ASK);
    const chips = ['one', 'two'].map((seed) => createRig({ seed }).processor.endorsedCek());
    for (const chip of [...chips, ...chips]) {
      const endorsed = distribution.endorseChip(chip);
      expect(SEV_CERTIFICATE.pubkey.get(endorsed)).toEqual(SEV_CERTIFICATE.pubkey.get(chip));
      expect(isEndorsedBy(parse(endorsed, USAGE.CEK), ask)).toBe(true);
      endorsed.fill(0);
      expect(isEndorsedBy(parse(distribution.endorseChip(chip), USAGE.CEK), ask)).toBe(true);
    }
  });
});
