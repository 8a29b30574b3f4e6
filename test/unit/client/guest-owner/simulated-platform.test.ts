import { describe, expect, it } from 'vitest';
import {
  createLaunchSession,
  createReportVerifier,
  launchDigest,
  openSession,
  sealSecret,
  verifyMeasurement,
  verifyPlatform,
  verifyReport,
  verifySevReport,
} from '../../../../client/guest-owner/index.js';
import { ATTESTATION, LAUNCH_START } from '../../../../server/hardware/amd/command-buffers.js';
import { SNP_VLEK_LOAD } from '../../../../server/hardware/amd/snp/command-buffers.js';
import { STATUS } from '../../../../server/hardware/amd/status.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { putPacket, targetCertificates } from '../../hardware/amd/guests.js';
import { createRig, type Rig, set } from '../../hardware/amd/rig.js';
import { createSnpRig } from '../../hardware/amd/snp/snp-rig.js';
import { flipped } from './vectors.js';

const POLICY = 2;
const PAGE = new Uint8Array(PAGE_SIZE).fill(0x5a);

/** LAUNCH_START with a session; the status and the handle. */
const launchStart = (rig: Rig, certificate: Uint8Array, session: Uint8Array, policy = POLICY) => {
  const { status, buffer } = rig.issue(
    'LAUNCH_START',
    LAUNCH_START,
    set(LAUNCH_START.policy, policy),
    set(LAUNCH_START.dhCertPaddr, rig.place(certificate)),
    set(LAUNCH_START.dhCertLength, certificate.length),
    set(LAUNCH_START.sessionPaddr, rig.place(session)),
    set(LAUNCH_START.sessionLength, session.length),
  );
  return { status, handle: LAUNCH_START.handle.get(buffer) };
};

const initialised = (): Rig => {
  const rig = createRig();
  rig.init();
  return rig;
};

describe('a guest owner and a simulated platform', () => {
  it('verifies the chip up to the root, and finds a certificate of another chip', () => {
    const rig = initialised();
    const { pdh, chain, amd } = targetCertificates(rig);
    expect(verifyPlatform({ pdh, chain, amd }).checks.filter(({ ok }) => !ok)).toEqual([]);
    const other = createRig({ seed: 'another chip' });
    const foreign = verifyPlatform({ pdh, chain, amd, cek: other.processor.endorsedCek() });
    expect(foreign.checks.filter(({ ok }) => !ok).map(({ name }) => name)).toEqual(['the CEK has signed the PEK']);
  });

  it('launches with a session, verifies the measurement, and injects a secret', () => {
    const rig = initialised();
    const { pdh } = rig.exportCertificates();
    const { certificate, session, keys } = createLaunchSession({ pdh, policy: POLICY });
    const { status, handle } = launchStart(rig, certificate, session);
    expect(status).toBe(STATUS.SUCCESS);
    expect(rig.activate(handle, 5)).toBe(STATUS.SUCCESS);
    const page = rig.place(PAGE);
    expect(rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, page, PAGE_SIZE)).toBe(STATUS.SUCCESS);
    const measurement = rig.measure(handle);
    const { major, minor, build } = rig.processor.version;
    const measured = { apiMajor: major, apiMinor: minor, build, policy: POLICY, digest: launchDigest(PAGE) };
    expect(verifyMeasurement(measurement, keys.tik, measured)).toBe(true);
    expect(verifyMeasurement(measurement, keys.tik, { ...measured, digest: launchDigest() })).toBe(false);
    const secret = new Uint8Array(64).fill(0x77);
    const packet = sealSecret(keys, measurement, secret);
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, page, { ...packet, header: flipped(packet.header, 40) })).toBe(
      STATUS.BAD_MEASUREMENT,
    );
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, page, packet)).toBe(STATUS.SUCCESS);
    expect(rig.seenBy(5, page, 64)).toEqual(secret);
  });

  it('has its session refused with any bit altered, and for another policy', () => {
    const rig = initialised();
    const { pdh } = rig.exportCertificates();
    const { certificate, session } = createLaunchSession({ pdh, policy: POLICY });
    for (let byte = 0; byte < session.length; byte += 7)
      expect(launchStart(rig, certificate, flipped(session, byte * 8)).status, `byte ${byte}`).toBe(STATUS.BAD_MEASUREMENT);
    expect(launchStart(rig, certificate, session, 0).status).toBe(STATUS.BAD_MEASUREMENT);
    expect(() => createLaunchSession({ pdh: certificate.subarray(1), policy: 0 })).toThrow(RangeError);
  });

  it('opens a session as its receiver does', () => {
    const rig = initialised();
    const { pdh } = rig.exportCertificates();
    const scalars: Uint8Array[] = [];
    const random = (length: number): Uint8Array => {
      const bytes = new Uint8Array(length).fill(scalars.length + 1);
      scalars.push(bytes);
      return bytes;
    };
    const { session, keys } = createLaunchSession({ pdh, policy: POLICY, random });
    const [own = new Uint8Array(0)] = scalars;
    expect(openSession(own, pdh, POLICY, session)).toEqual(keys);
    expect(openSession(own, pdh, POLICY + 1, session)).toBeNull();
    expect(openSession(own, pdh, POLICY, flipped(session, 0))).toBeNull();
    expect(openSession(own, pdh, POLICY, session.subarray(1))).toBeNull();
  });

  it('verifies a report on a SEV guest with the PEK', () => {
    const rig = initialised();
    const handle = rig.launchStart(POLICY);
    const mnonce = new Uint8Array(16).fill(9);
    const paddr = rig.place(new Uint8Array(208));
    const settings = [set(ATTESTATION.handle, handle), set(ATTESTATION.mnonce, mnonce), set(ATTESTATION.length, 208)];
    expect(rig.issue('ATTESTATION', ATTESTATION, ...settings, set(ATTESTATION.paddr, paddr)).status).toBe(STATUS.SUCCESS);
    const report = rig.cells(paddr, 208);
    const pek = rig.exportCertificates().chain.subarray(0, 2084);
    expect(verifySevReport(report, mnonce, pek)).toEqual({ mnonce, digest: new Uint8Array(launchDigest()), policy: POLICY });
    for (let bit = 0; bit < 52 * 8; bit += 5) expect(verifySevReport(flipped(report, bit), mnonce, pek)).toBeNull();
    expect(verifySevReport(report, new Uint8Array(16), pek)).toBeNull();
  });
});

describe('reports that a simulated processor has signed', () => {
  const chainOf = (rig: ReturnType<typeof createSnpRig>, key: Uint8Array): Uint8Array[] => {
    const { ark, ask } = rig.keyDistribution.x509Chain();
    return [key, ask, ark];
  };

  it('verify with the VCEK, and are known not to be AMD’s', () => {
    const rig = createSnpRig();
    rig.snpInit();
    const { report } = rig.report(rig.runningGuest());
    const verify = createReportVerifier({ chain: chainOf(rig, rig.processor.vcekCertificate()) });
    const verified = verify(report);
    expect(verified.checks.filter(({ ok }) => !ok)).toEqual([]);
    expect(verified.root?.amdProduct).toBeNull();
    for (let byte = 0x50; byte < 0x2a0; byte += 3) expect(verify(flipped(report, byte * 8)).ok).toBe(false);
    const other = createSnpRig({ seed: 'another chip' });
    expect(verifyReport(report, { chain: chainOf(rig, other.processor.vcekCertificate()) }).ok).toBe(false);
  });

  it('verify with a VLEK', () => {
    const rig = createSnpRig();
    rig.snpInit();
    const { wrapped, certificate } = rig.processor.orderVlek('provider');
    const settings = [set(SNP_VLEK_LOAD.length, 16), set(SNP_VLEK_LOAD.wrappedPaddr, rig.place(wrapped))];
    expect(rig.issue('SNP_VLEK_LOAD', SNP_VLEK_LOAD, ...settings).status).toBe(STATUS.SUCCESS);
    const { report } = rig.report(rig.runningGuest());
    expect(verifyReport(report, { chain: chainOf(rig, certificate) }).checks.filter(({ ok }) => !ok)).toEqual([]);
    expect(verifyReport(report, { chain: chainOf(rig, rig.processor.vcekCertificate()) }).ok).toBe(false);
  });
});
