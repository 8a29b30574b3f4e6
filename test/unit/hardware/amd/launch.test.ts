import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { decodeEcSignature, parseCertificate, SEV_CERTIFICATE, USAGE } from '../../../../server/hardware/amd/certificates.js';
import { ATTESTATION, DBG, INIT, LAUNCH_MEASURE, LAUNCH_START, PACKET } from '../../../../server/hardware/amd/command-buffers.js';
import { ATTESTATION_REPORT } from '../../../../server/hardware/amd/commands/attestation.js';
import { LaunchDigest, launchMeasurement } from '../../../../server/hardware/amd/launch-digest.js';
import { verifySignature } from '../../../../server/hardware/amd/p384.js';
import { MAC_CONTEXT, openPacket, sealPacket } from '../../../../server/hardware/amd/packet.js';
import { SESSION } from '../../../../server/hardware/amd/session.js';
import { STATUS } from '../../../../server/hardware/amd/status.js';
import { asid, hpa, PAGE_SIZE } from '../../../../server/hardware/units.js';
import { createGuestOwner, guestInState, putPacket } from './guests.js';
import { createRig, hex, type Rig, set, unhex, VECTORS_NEEDED, vector, vectorsAbsent } from './rig.js';

const sha256 = (...parts: Uint8Array[]): Uint8Array => createHash('sha256').update(Buffer.concat(parts)).digest();
const page = (fill: number): Uint8Array => new Uint8Array(PAGE_SIZE).fill(fill);

function initialised(): Rig {
  const rig = createRig();
  rig.init();
  return rig;
}

/** LAUNCH_START with the session of a guest owner who knows this platform. */
function startWithSession(rig: Rig, policy: number, alter: (session: Uint8Array) => void = () => undefined) {
  const owner = createGuestOwner();
  const session = owner.session(rig.exportCertificates().pdh, policy);
  alter(session);
  const answer = rig.issue(
    'LAUNCH_START',
    LAUNCH_START,
    set(LAUNCH_START.policy, policy),
    set(LAUNCH_START.dhCertPaddr, rig.place(owner.certificate)),
    set(LAUNCH_START.dhCertLength, owner.certificate.length),
    set(LAUNCH_START.sessionPaddr, rig.place(session)),
    set(LAUNCH_START.sessionLength, session.length),
  );
  return { owner, status: answer.status, handle: LAUNCH_START.handle.get(answer.buffer) };
}

describe('the launch measurement', () => {
  it('is the HMAC that sev-tool publishes for API 0.18 build 15', () => {
    const measure = launchMeasurement(unhex('66320db73158a35a255d051758e95ed4'), {
      firmware: { major: 0, minor: 18, build: 15 },
      policy: 0,
      digest: new LaunchDigest().value(),
      mnonce: unhex('4fbe0bedbad6c86ae8f68971d103e554'),
    });
    expect(hex(measure)).toBe('6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea');
  });

  it.skipIf(vectorsAbsent)(
    `is what sevctl publishes for a firmware image, and for one with four VMSAs (${VECTORS_NEEDED})`,
    () => {
      const tik = vectorsAbsent ? new Uint8Array(0) : vector('sevctl/measurement-tik1.bin');
      const image = vector('sevctl/OVMF.amdsev.fd_trimmed_edk2-ovmf-20220126gitbb1bba3d77-4.el9');
      const plain = new LaunchDigest();
      plain.update(image);
      const mnonce = unhex('c313fab511c216b1505b1b2ea9903c40');
      const measure = launchMeasurement(tik, {
        firmware: { major: 1, minor: 40, build: 40 },
        policy: 3,
        digest: plain.value(),
        mnonce,
      });
      expect(hex(measure)).toBe('a0c0dec08a2e252a5ba4d4478fb324de9d3c1f674f65076c64c535e2a2329819');

      const es = new LaunchDigest();
      es.update(image);
      es.update(vector('sevctl/vmsa0.bin'));
      for (let vcpu = 1; vcpu < 4; vcpu++) es.update(vector('sevctl/vmsa1.bin'));
      const esMeasure = launchMeasurement(tik, {
        firmware: { major: 1, minor: 49, build: 6 },
        policy: 5,
        digest: es.value(),
        mnonce: unhex('2dbe959f5d3164db528c6480008509f2'),
      });
      expect(hex(esMeasure)).toBe('fe8d27cc3284e5782d56751958f85479afd6658ad328b13147b282c2e31d6c07');
    },
  );

  it.skipIf(vectorsAbsent)(`has the digest that sev-snp-measure publishes for OVMF (${VECTORS_NEEDED})`, () => {
    const digest = new LaunchDigest();
    digest.update(vector('measure/ovmf_OvmfX64_suffix.bin'));
    expect(hex(digest.value())).toBe('b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da');
  });
});

describe('a launch', () => {
  it('measures plaintext in the order of the calls, whatever their boundaries and addresses, and encrypts it in place', () => {
    const rig = initialised();
    const { owner, handle } = startWithSession(rig, 0);
    rig.activate(handle, 5);
    const image = Uint8Array.from({ length: 3 * PAGE_SIZE }, (_, index) => index * 7);
    const paddr = rig.place(image);
    expect(rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, paddr, 0x1010)).toBe(STATUS.SUCCESS);
    expect(rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, paddr + 0x1010, 2 * PAGE_SIZE - 0x10)).toBe(STATUS.SUCCESS);
    const blob = rig.measure(handle);
    const expected = launchMeasurement(owner.keys.tik, {
      firmware: rig.processor.version,
      policy: 0,
      digest: sha256(image),
      mnonce: blob.subarray(32),
    });
    expect(hex(blob.subarray(0, 32))).toBe(hex(expected));

    const ciphertext = rig.cells(paddr, image.length);
    for (let at = 0; at < image.length; at += 16) {
      expect(hex(ciphertext.subarray(at, at + 16))).not.toBe(hex(image.subarray(at, at + 16)));
    }
    expect(hex(rig.seenBy(5, paddr, image.length))).toBe(hex(image));
  });

  it('measures data before save areas, for an SEV-ES guest only', () => {
    const rig = initialised();
    const es = startWithSession(rig, 4);
    rig.activate(es.handle, 1);
    const [data, vmsa] = [page(1), page(2)];
    expect(rig.launchUpdate('LAUNCH_UPDATE_DATA', es.handle, rig.place(data), PAGE_SIZE)).toBe(STATUS.SUCCESS);
    expect(rig.launchUpdate('LAUNCH_UPDATE_VMSA', es.handle, rig.place(vmsa), PAGE_SIZE)).toBe(STATUS.SUCCESS);
    const blob = rig.measure(es.handle);
    const digest = sha256(data, vmsa);
    const measured = { firmware: rig.processor.version, policy: 4, digest, mnonce: blob.subarray(32) };
    expect(hex(blob.subarray(0, 32))).toBe(hex(launchMeasurement(es.owner.keys.tik, measured)));

    const plain = guestInState(rig, 'launch-update', 5);
    expect(rig.launchUpdate('LAUNCH_UPDATE_VMSA', plain.handle, rig.place(vmsa), PAGE_SIZE)).toBe(STATUS.INVALID_CONFIG);
  });

  it('charges each command, and each KiB that it digests and encrypts', () => {
    const rig = initialised();
    guestInState(rig, 'launch-update', 5);
    expect(rig.ledger.counts.get('psp_LAUNCH_UPDATE_DATA')).toBe(1);
    expect(rig.ledger.counts.get('psp_kib_encrypted')).toBe(4);
    expect(rig.ledger.counts.get('psp_kib_digested')).toBe(4);
  });

  it('gives the same bytes for the same seed', () => {
    const blobs = [1, 2].map(() => {
      const rig = initialised();
      return hex(rig.measure(guestInState(rig, 'launch-update', 5).handle));
    });
    expect(blobs[0]).toBe(blobs[1]);
    const other = createRig({ seed: 'other' });
    other.init();
    expect(hex(other.measure(guestInState(other, 'launch-update', 5).handle))).not.toBe(blobs[0]);
  });

  it('never leaves two guests with one key, unless they ask for it', () => {
    const rig = initialised();
    const a = guestInState(rig, 'launch-update', 5);
    guestInState(rig, 'launch-update', 6);
    const seal = (id: number): string => {
      const bytes = page(9);
      rig.asidKeys.keyOf(asid(id))?.sealPage(hpa(0), bytes);
      return hex(bytes);
    };
    expect(seal(5)).not.toBe(seal(6));
    const sharing = rig.launchStart(0, a.handle);
    expect(rig.activate(sharing, 7)).toBe(STATUS.SUCCESS);
    expect(seal(7)).toBe(seal(5));
  });
});

describe('LAUNCH_START', () => {
  const status = (rig: Rig, ...settings: Parameters<Rig['issue']>[2][]) =>
    rig.issue('LAUNCH_START', LAUNCH_START, ...settings).status;

  it('accepts the session of an owner who knows the PDH', () => {
    expect(startWithSession(initialised(), 1).status).toBe(STATUS.SUCCESS);
  });

  for (const [field, { offset, size }] of Object.entries({
    nonce: SESSION.nonce,
    wrapTk: SESSION.wrapTk,
    wrapIv: SESSION.wrapIv,
    wrapMac: SESSION.wrapMac,
    policyMac: SESSION.policyMac,
  })) {
    it(`refuses a session with a bit flipped in ${field}`, () => {
      const flip = (at: number) => (session: Uint8Array) => {
        session[at] ^= 1;
      };
      expect(startWithSession(initialised(), 1, flip(offset)).status).toBe(STATUS.BAD_MEASUREMENT);
      expect(startWithSession(initialised(), 1, flip(offset + size - 1)).status).toBe(STATUS.BAD_MEASUREMENT);
    });
  }

  it('refuses a session that was made for another policy, or for the PDH before PDH_GEN', () => {
    const rig = initialised();
    const owner = createGuestOwner();
    const start = (session: Uint8Array, policy: number) =>
      status(
        rig,
        set(LAUNCH_START.policy, policy),
        set(LAUNCH_START.dhCertPaddr, rig.place(owner.certificate)),
        set(LAUNCH_START.dhCertLength, owner.certificate.length),
        set(LAUNCH_START.sessionPaddr, rig.place(session)),
        set(LAUNCH_START.sessionLength, session.length),
      );
    const session = owner.session(rig.exportCertificates().pdh, 1);
    expect(start(session, 0)).toBe(STATUS.BAD_MEASUREMENT);
    expect(start(session, 1)).toBe(STATUS.SUCCESS);
    expect(rig.issue('PDH_GEN').status).toBe(STATUS.SUCCESS);
    expect(start(session, 1)).toBe(STATUS.BAD_MEASUREMENT);
  });

  it('checks lengths before addresses, addresses before the certificate', () => {
    const rig = initialised();
    const owner = createGuestOwner();
    const session = owner.session(rig.exportCertificates().pdh, 0);
    const [certPaddr, sessionPaddr] = [rig.place(owner.certificate), rig.place(session)];
    const start = (certLength: number, sessionLength: number, cert: number, blob: number) =>
      status(
        rig,
        set(LAUNCH_START.dhCertPaddr, cert),
        set(LAUNCH_START.dhCertLength, certLength),
        set(LAUNCH_START.sessionPaddr, blob),
        set(LAUNCH_START.sessionLength, sessionLength),
      );
    expect(start(2083, 128, certPaddr, sessionPaddr)).toBe(STATUS.INVALID_LENGTH);
    expect(start(2084, 124, certPaddr, sessionPaddr)).toBe(STATUS.INVALID_LENGTH);
    expect(start(2084, 128, 2 ** 40, sessionPaddr)).toBe(STATUS.INVALID_ADDRESS);
    expect(start(2084, 128, certPaddr, 2 ** 53)).toBe(STATUS.INVALID_ADDRESS);
    const notPdh = owner.certificate.slice();
    SEV_CERTIFICATE.pubkeyUsage.set(notPdh, USAGE.PEK);
    expect(start(2084, 128, rig.place(notPdh), sessionPaddr)).toBe(STATUS.INVALID_CERTIFICATE);
    const offCurve = owner.certificate.slice();
    offCurve[0x010 + 4] ^= 1;
    expect(start(2084, 128, rig.place(offCurve), sessionPaddr)).toBe(STATUS.INVALID_CERTIFICATE);
    expect(start(2084, 128, certPaddr, sessionPaddr)).toBe(STATUS.SUCCESS);
  });

  it('enforces the policy: version, SEV-ES, key sharing, reserved bits', () => {
    const rig = createRig();
    rig.init();
    const launch = (policy: number, sharedWith = 0) =>
      status(rig, set(LAUNCH_START.policy, policy), set(LAUNCH_START.handle, sharedWith));
    expect(launch((55 << 24) | (1 << 16))).toBe(STATUS.SUCCESS);
    expect(launch((56 << 24) | (1 << 16))).toBe(STATUS.POLICY_FAILURE);
    expect(launch(2 << 16)).toBe(STATUS.POLICY_FAILURE);
    expect(launch(1 << 6)).toBe(STATUS.INVALID_PARAM);
    const owner = rig.launchStart(1);
    expect(launch(1, owner)).toBe(STATUS.SUCCESS);
    expect(launch(0, owner)).toBe(STATUS.POLICY_FAILURE);
    expect(launch(1, 99)).toBe(STATUS.INVALID_GUEST);
    const unshared = rig.launchStart(2);
    expect(launch(2, unshared)).toBe(STATUS.POLICY_FAILURE);

    const plain = createRig();
    expect(plain.issue('INIT', INIT).status).toBe(STATUS.SUCCESS);
    expect(status(plain, set(LAUNCH_START.policy, 4))).toBe(STATUS.UNSUPPORTED);
  });

  it('refuses what has no context left, and reserved bytes that are not zero', () => {
    const rig = createRig({ asids: { count: 2, minSev: 1 } });
    expect(rig.issue('INIT', INIT).status).toBe(STATUS.SUCCESS);
    expect(rig.launchStart()).toBe(1);
    expect(rig.launchStart()).toBe(2);
    expect(status(rig)).toBe(STATUS.RESOURCE_LIMIT);
    expect(
      status(rig, (buffer) => {
        buffer[20] = 1;
      }),
    ).toBe(STATUS.INVALID_PARAM);
  });
});

describe('LAUNCH_UPDATE_DATA', () => {
  it('wants an active guest, whole blocks and memory that exists', () => {
    const rig = initialised();
    const handle = rig.launchStart();
    const paddr = rig.place(page(0));
    const update = (address: number, length: number) => rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, address, length);
    expect(update(paddr, PAGE_SIZE)).toBe(STATUS.INACTIVE);
    rig.activate(handle, 5);
    expect(update(paddr, 0)).toBe(STATUS.INVALID_LENGTH);
    expect(update(paddr, 17)).toBe(STATUS.INVALID_LENGTH);
    expect(update(paddr + 8, 16)).toBe(STATUS.INVALID_ADDRESS);
    expect(update(2 ** 41, 16)).toBe(STATUS.INVALID_ADDRESS);
    expect(update(paddr, PAGE_SIZE)).toBe(STATUS.SUCCESS);
    expect(rig.launchUpdate('LAUNCH_UPDATE_VMSA', rig.launchStart(4), paddr, PAGE_SIZE)).toBe(STATUS.INACTIVE);
  });

  it('changes nothing when part of the range is no memory', () => {
    const rig = initialised();
    const guest = guestInState(rig, 'launch-update', 5);
    const paddr = rig.place(page(3));
    expect(rig.launchUpdate('LAUNCH_UPDATE_DATA', guest.handle, paddr, 2 ** 30)).toBe(STATUS.INVALID_ADDRESS);
    expect(hex(rig.cells(paddr, PAGE_SIZE))).toBe(hex(page(3)));
  });
});

describe('LAUNCH_MEASURE', () => {
  it('answers too short a buffer with the length it needs, in the same state', () => {
    const rig = initialised();
    const { handle } = guestInState(rig, 'launch-update', 5);
    const answer = rig.issue('LAUNCH_MEASURE', LAUNCH_MEASURE, set(LAUNCH_MEASURE.handle, handle));
    expect(answer.status).toBe(STATUS.INVALID_LENGTH);
    expect(LAUNCH_MEASURE.measureLength.get(answer.buffer)).toBe(48);
    expect(rig.processor.guests()[0]?.state).toBe('launch-update');
  });
});

describe('LAUNCH_SECRET', () => {
  it.skipIf(vectorsAbsent)(`makes the packet that sevctl publishes (${VECTORS_NEEDED})`, () => {
    const keys = { tek: vector('sevctl/secret-tek1.bin'), tik: vector('sevctl/secret-tik1.bin') };
    const header = unhex(
      '00000000ac5474ed4dd32c7d989ec523d92559ecbc152cde610e17f0aef557334a2d4fca42c22c4312e3b5b85a3d47b0aac857e5',
    );
    const data = unhex(
      'd14ddee4f717bf4516f87e2d48114a39d0987ca135fa3dfc05cd9fb8ed7a9988b223eb16c7b20d7e7fa58188f9e862f5db2ca29c36be9557c20b00ffdb0e5c3c',
    );
    const measure = unhex('4cb780efad3b959427b4b8d1635fe2fac6ed75267eef9cf1a73e0fc7d873a412');
    const binding = { context: MAC_CONTEXT.LAUNCH_SECRET, measure };
    const secret = openPacket(keys, binding, { header, data }, data.length);
    expect(hex(secret ?? new Uint8Array(0))).toContain(hex(vector('sevctl/secret-secret1.txt')));
    const sealed = sealPacket(keys, binding, header.slice(4, 20), secret ?? new Uint8Array(0));
    expect([hex(sealed.header), hex(sealed.data)]).toEqual([hex(header), hex(data)]);
  });

  function measured() {
    const rig = initialised();
    const { owner, handle } = startWithSession(rig, 0);
    rig.activate(handle, 5);
    const paddr = rig.place(page(1));
    rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, paddr, PAGE_SIZE);
    const measure = rig.measure(handle).subarray(0, 32);
    const secret = new Uint8Array(64).fill(0x77);
    const binding = { context: MAC_CONTEXT.LAUNCH_SECRET, measure };
    return { rig, owner, handle, paddr, binding, secret, packet: sealPacket(owner.keys, binding, new Uint8Array(16), secret) };
  }

  it('puts the secret into guest memory, as often as asked, and nothing beside it changes', () => {
    const { rig, handle, paddr, packet, secret } = measured();
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr + 0x100, packet)).toBe(STATUS.SUCCESS);
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr + 0x200, packet)).toBe(STATUS.SUCCESS);
    const expected = page(1);
    expected.set(secret, 0x100);
    expected.set(secret, 0x200);
    expect(hex(rig.seenBy(5, paddr, PAGE_SIZE))).toBe(hex(expected));
  });

  it('refuses a packet that was altered, is for another measurement, or of a wrong length', () => {
    const { rig, owner, handle, paddr, binding, secret, packet } = measured();
    const alter = (bytes: Uint8Array, at: number): Uint8Array => bytes.map((byte, index) => (index === at ? byte ^ 1 : byte));
    for (const at of [0, 4, 19, 20, 51]) {
      expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, { ...packet, header: alter(packet.header, at) })).toBe(
        STATUS.BAD_MEASUREMENT,
      );
    }
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, { ...packet, data: alter(packet.data, 63) })).toBe(
      STATUS.BAD_MEASUREMENT,
    );
    const elsewhere = sealPacket(owner.keys, { ...binding, measure: new Uint8Array(32) }, new Uint8Array(16), secret);
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, elsewhere)).toBe(STATUS.BAD_MEASUREMENT);
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, { ...packet, header: packet.header.subarray(0, 51) })).toBe(
      STATUS.INVALID_LENGTH,
    );
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, { ...packet, data: packet.data.subarray(0, 60) })).toBe(
      STATUS.INVALID_LENGTH,
    );
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr, { ...packet, data: new Uint8Array(16 * 1024 + 16) })).toBe(
      STATUS.INVALID_LENGTH,
    );
    expect(putPacket(rig, 'LAUNCH_SECRET', handle, paddr + 8, packet)).toBe(STATUS.INVALID_ADDRESS);
    rig.onGuest('DEACTIVATE', handle);
    expect(rig.issue('LAUNCH_SECRET', PACKET, set(PACKET.handle, handle)).status).toBe(STATUS.INACTIVE);
  });
});

describe('ATTESTATION', () => {
  it('reports nonce, digest and policy under the signature of the PEK', () => {
    const rig = initialised();
    const { handle } = guestInState(rig, 'running', 3, 4);
    const paddr = rig.place(new Uint8Array(ATTESTATION_REPORT.size));
    const mnonce = new Uint8Array(16).fill(7);
    const settings = [set(ATTESTATION.handle, handle), set(ATTESTATION.mnonce, mnonce), set(ATTESTATION.paddr, paddr)];
    const query = rig.issue('ATTESTATION', ATTESTATION, ...settings);
    expect([query.status, ATTESTATION.length.get(query.buffer)]).toEqual([STATUS.INVALID_LENGTH, 208]);
    expect(rig.issue('ATTESTATION', ATTESTATION, ...settings, set(ATTESTATION.length, 208)).status).toBe(STATUS.SUCCESS);

    const report = rig.cells(paddr, ATTESTATION_REPORT.size);
    expect(hex(ATTESTATION_REPORT.mnonce.get(report))).toBe(hex(mnonce));
    expect(hex(ATTESTATION_REPORT.digest.get(report))).toBe(hex(sha256(page(0x5a))));
    expect(ATTESTATION_REPORT.policy.get(report)).toBe(4);
    const pek = parseCertificate(rig.exportCertificates().chain.subarray(0, SEV_CERTIFICATE.size), USAGE.PEK);
    const signature = decodeEcSignature(ATTESTATION_REPORT.signature.get(report));
    if (pek === null || signature === null) throw new Error('no PEK or no signature');
    expect(verifySignature('sha256', pek.publicKey, report.subarray(0, 52), signature)).toBe(true);
    report[0] ^= 1;
    expect(verifySignature('sha256', pek.publicKey, report.subarray(0, 52), signature)).toBe(false);
  });
});

describe('DBG_DECRYPT and DBG_ENCRYPT', () => {
  function debug(
    rig: Rig,
    name: 'DBG_DECRYPT' | 'DBG_ENCRYPT',
    handle: number,
    source: number,
    destination: number,
    length: number,
  ) {
    return rig.issue(
      name,
      DBG,
      set(DBG.handle, handle),
      set(DBG.srcPaddr, source),
      set(DBG.dstPaddr, destination),
      set(DBG.length, length),
    ).status;
  }

  it('read and write a guest whose policy allows it', () => {
    const rig = initialised();
    const guest = guestInState(rig, 'running', 5);
    const plain = rig.place(page(0));
    expect(debug(rig, 'DBG_DECRYPT', guest.handle, guest.page + 32, plain + 64, 128)).toBe(STATUS.SUCCESS);
    expect(hex(rig.cells(plain, 256))).toBe(
      hex(Buffer.concat([new Uint8Array(64), new Uint8Array(128).fill(0x5a), new Uint8Array(64)])),
    );
    const patch = rig.place(page(0xee));
    expect(debug(rig, 'DBG_ENCRYPT', guest.handle, patch, guest.page + 16, 16)).toBe(STATUS.SUCCESS);
    expect(debug(rig, 'DBG_DECRYPT', guest.handle, guest.page, plain, 48)).toBe(STATUS.SUCCESS);
    expect(hex(rig.cells(plain, 48))).toBe(`${'5a'.repeat(16)}${'ee'.repeat(16)}${'5a'.repeat(16)}`);
  });

  it('are refused by NODBG, to an inactive guest, and for parts of blocks', () => {
    const rig = initialised();
    const closed = guestInState(rig, 'running', 5, 1);
    const open = guestInState(rig, 'running', 6, 0);
    const plain = rig.place(page(0));
    for (const name of ['DBG_DECRYPT', 'DBG_ENCRYPT'] as const) {
      expect(debug(rig, name, closed.handle, closed.page, plain, 16)).toBe(STATUS.POLICY_FAILURE);
      expect(debug(rig, name, open.handle, open.page, plain, 8)).toBe(STATUS.INVALID_LENGTH);
      expect(debug(rig, name, open.handle, open.page + 1, plain, 16)).toBe(STATUS.INVALID_ADDRESS);
      expect(debug(rig, name, open.handle, open.page, 2 ** 44, 16)).toBe(STATUS.INVALID_ADDRESS);
    }
    rig.onGuest('DEACTIVATE', open.handle);
    expect(debug(rig, 'DBG_DECRYPT', open.handle, open.page, plain, 16)).toBe(STATUS.INACTIVE);
    expect(hex(rig.cells(plain, 16))).toBe(hex(new Uint8Array(16)));
  });
});
