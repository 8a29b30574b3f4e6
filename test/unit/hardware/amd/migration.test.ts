import { describe, expect, it } from 'vitest';
import {
  addSignature,
  CHAIN_LENGTH,
  createCertificate,
  SEV_CERTIFICATE,
  USAGE,
} from '../../../../server/hardware/amd/certificates.js';
import { PACKET, PEK_CERT_IMPORT, PEK_CSR, RECEIVE_START, SEND_START } from '../../../../server/hardware/amd/command-buffers.js';
import { keyPair, keyPairFromSeed, sharedSecret } from '../../../../server/hardware/amd/p384.js';
import { MAC_CONTEXT, openPacket, sealPacket } from '../../../../server/hardware/amd/packet.js';
import { deriveMasterSecret, openSession, wrappingKeys, wrapTransportKeys } from '../../../../server/hardware/amd/session.js';
import { STATUS } from '../../../../server/hardware/amd/status.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { guestInState, putPacket, receiveStart, sendStart, sendUpdate, targetCertificates } from './guests.js';
import { C_BIT, createRig, hex, jsonVector, type Rig, set, unhex, VECTORS_NEEDED, vectorsAbsent } from './rig.js';

function host(seed: string): Rig {
  const rig = createRig({ seed });
  rig.init();
  return rig;
}

/** A guest being sent from one host and received by another. */
function inTransit(policy = 0) {
  const [source, target] = [host('source'), host('target')];
  const es = (policy & 4) !== 0;
  const guest = guestInState(source, 'running', es ? 3 : 5, policy);
  const sent = sendStart(source, { handle: guest.handle, ...targetCertificates(target) });
  expect(sent.status).toBe(STATUS.SUCCESS);
  expect(SEND_START.policy.get(sent.buffer)).toBe(policy);
  const { pdh } = source.exportCertificates();
  const received = receiveStart(target, { policy, pdh, session: sent.session });
  expect(received.status).toBe(STATUS.SUCCESS);
  const handle = RECEIVE_START.handle.get(received.buffer);
  const asid = es ? 2 : 6;
  expect(target.activate(handle, asid)).toBe(STATUS.SUCCESS);
  return { source, target, guest, session: sent.session, pdh, received: { handle, asid } };
}

const emptyPage = (rig: Rig): number => rig.place(new Uint8Array(PAGE_SIZE));

type Json = { readonly [name: string]: unknown };

const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null;

/** A string of a JSON object. */
function field(object: unknown, name: string): string {
  const value = isObject(object) ? object[name] : undefined;
  if (typeof value !== 'string') throw new Error(`the vectors have no ${name}`);
  return value;
}

describe('session and packets', () => {
  it('derive, wrap and authenticate as virtee/sev publishes for keys of zeros', () => {
    const zero = new Uint8Array(16);
    const master = deriveMasterSecret(zero, zero);
    expect(hex(master)).toBe('ab4d269fcc62bedb4511d56c386ce706');
    const session = wrapTransportKeys(wrappingKeys(master), { tek: zero, tik: zero }, 0, zero, zero);
    expect(hex(session.subarray(16, 48))).toBe('2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4');
    expect(hex(session.subarray(64, 96))).toBe('3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d');
    expect(hex(session.subarray(96))).toBe('aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af');
  });

  it.skipIf(vectorsAbsent)(
    `give the model's whole transcript, from the keys of both hosts to the packets (${VECTORS_NEEDED})`,
    () => {
      const vectors = jsonVector('selfcomputed-migration.json');
      if (!isObject(vectors)) throw new Error('not the vectors of a migration');
      const source = keyPair(unhex(field(vectors, 'sourcePdhPrivBE')));
      const target = keyPair(unhex(field(vectors, 'targetPdhPrivBE')));
      expect(hex(sharedSecret(source.privateKey, target.publicKey) ?? new Uint8Array(0))).toBe(vectors.ecdhSharedX_BE);
      const certificate = createCertificate(USAGE.PDH, source.publicKey, { major: 1, minor: 55 }, []);
      expect(hex(SEV_CERTIFICATE.pubkey.get(certificate))).toContain(field(vectors.sourcePdhPub, 'certFieldHex'));
      const keys = { tek: unhex(field(vectors, 'tek')), tik: unhex(field(vectors, 'tik')) };
      const policy = Number(vectors.policy);
      const wrapping = wrappingKeys(unhex(field(vectors, 'masterSecret')));
      expect(
        hex(wrapTransportKeys(wrapping, keys, policy, unhex(field(vectors, 'nonce')), unhex(field(vectors, 'wrapIv')))),
      ).toBe(vectors.sessionHex);
      const opened = openSession(target, source.publicKey, policy, unhex(field(vectors, 'sessionHex')));
      expect(opened.kind === 'opened' ? [hex(opened.keys.tek), hex(opened.keys.tik)] : opened.kind).toEqual([
        vectors.tek,
        vectors.tik,
      ]);
      const plaintext = Uint8Array.from({ length: PAGE_SIZE }, (_, index) => index & 0xff);
      for (const [name, context] of [
        ['sendUpdateData', MAC_CONTEXT.UPDATE_DATA],
        ['sendUpdateVmsa', MAC_CONTEXT.UPDATE_VMSA],
      ] as const) {
        const row = vectors[name];
        const packet = sealPacket(keys, { context }, unhex(field(row, 'iv')), plaintext);
        expect(hex(packet.header)).toBe(field(row, 'headerHex'));
        expect(hex(openPacket(keys, { context }, packet, PAGE_SIZE) ?? new Uint8Array(0))).toBe(hex(plaintext));
      }
    },
  );
});

describe('a guest that is sent', () => {
  it('arrives with its memory, under another key, at any address', () => {
    const { source, target, guest, received } = inTransit();
    const sent = sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, PAGE_SIZE);
    expect(sent.status).toBe(STATUS.SUCCESS);
    const plaintext = new Uint8Array(PAGE_SIZE).fill(0x5a);
    expect(hex(source.seenBy(guest.asid, guest.page, PAGE_SIZE))).toBe(hex(plaintext));
    expect(hex(sent.data)).not.toContain('5a'.repeat(16));
    expect(hex(sent.data)).not.toBe(hex(source.cells(guest.page, PAGE_SIZE)));
    emptyPage(target);
    const page = emptyPage(target);
    expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, sent)).toBe(STATUS.SUCCESS);
    expect(hex(target.seenBy(received.asid, page, PAGE_SIZE))).toBe(hex(plaintext));
    expect(hex(target.cells(page, PAGE_SIZE))).not.toBe(hex(plaintext));
    expect(source.onGuest('SEND_FINISH', guest.handle).status).toBe(STATUS.SUCCESS);
    expect(target.onGuest('RECEIVE_FINISH', received.handle).status).toBe(STATUS.SUCCESS);
    expect(source.processor.guests()[0]?.state).toBe('sent');
    expect(target.processor.guests()[0]?.state).toBe('running');
  });

  it('takes its save areas along if it is SEV-ES, and has none otherwise', () => {
    const { source, target, guest, received } = inTransit(4);
    const vmsa = sendUpdate(source, 'SEND_UPDATE_VMSA', guest.handle, guest.page, PAGE_SIZE);
    expect(vmsa.status).toBe(STATUS.SUCCESS);
    const page = emptyPage(target);
    expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, vmsa)).toBe(STATUS.BAD_MEASUREMENT);
    expect(putPacket(target, 'RECEIVE_UPDATE_VMSA', received.handle, page, vmsa)).toBe(STATUS.SUCCESS);
    expect(hex(target.seenBy(received.asid, page, 16))).toBe('5a'.repeat(16));

    const plain = inTransit();
    expect(sendUpdate(plain.source, 'SEND_UPDATE_VMSA', plain.guest.handle, plain.guest.page, PAGE_SIZE).status).toBe(
      STATUS.INVALID_CONFIG,
    );
  });

  it('can be sent in pieces of a page, and received beside what was received before', () => {
    const { source, target, guest, received } = inTransit();
    const [first, second] = [0, 2048].map((offset) =>
      sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page + offset, 2048),
    );
    const page = emptyPage(target);
    expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page + 2048, second)).toBe(STATUS.SUCCESS);
    expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, first)).toBe(STATUS.SUCCESS);
    expect(hex(target.seenBy(received.asid, page, PAGE_SIZE))).toBe('5a'.repeat(PAGE_SIZE));
  });

  it('is not protected against packets that are repeated, reordered or put elsewhere within its session', () => {
    const { source, target, guest, received } = inTransit();
    const sent = sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, PAGE_SIZE);
    for (const page of [emptyPage(target), emptyPage(target)]) {
      expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, sent)).toBe(STATUS.SUCCESS);
      expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, sent)).toBe(STATUS.SUCCESS);
    }
  });

  it('takes no packet of another session, and none with a bit flipped', () => {
    const { source, target, guest, received } = inTransit();
    const sent = sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, PAGE_SIZE);
    const page = emptyPage(target);
    const put = (header: Uint8Array, data: Uint8Array) =>
      putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, { header, data });
    const flip = (bytes: Uint8Array, at: number): Uint8Array => bytes.map((byte, index) => (index === at ? byte ^ 0x80 : byte));
    for (const at of [0, 4, 19, 20, 51]) expect(put(flip(sent.header, at), sent.data)).toBe(STATUS.BAD_MEASUREMENT);
    for (const at of [0, PAGE_SIZE - 1]) expect(put(sent.header, flip(sent.data, at))).toBe(STATUS.BAD_MEASUREMENT);
    expect(put(sent.header, sent.data.subarray(0, 2048))).toBe(STATUS.BAD_MEASUREMENT);
    expect(put(sent.header.subarray(0, 51), sent.data)).toBe(STATUS.INVALID_LENGTH);
    expect(put(sent.header, sent.data.subarray(0, 8))).toBe(STATUS.INVALID_LENGTH);
    expect(hex(target.cells(page, PAGE_SIZE))).toBe('00'.repeat(PAGE_SIZE));

    source.onGuest('SEND_CANCEL', guest.handle);
    sendStart(source, { handle: guest.handle, ...targetCertificates(target) });
    const again = sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, PAGE_SIZE);
    expect(put(again.header, again.data)).toBe(STATUS.BAD_MEASUREMENT);
    expect(put(sent.header, sent.data)).toBe(STATUS.SUCCESS);
  });

  it('goes under one key stream that no two packets share, and under another one in each session', () => {
    const { source, target, guest, received } = inTransit();
    const first = (header: Uint8Array): bigint => BigInt(`0x${hex(header.subarray(4, 20))}`);
    const lengths = [16, PAGE_SIZE, 48, 2048];
    const sent = lengths.map((length) => sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, length));
    let expected = first(sent[0]?.header ?? new Uint8Array(0));
    for (const { header, data } of sent) {
      expect(first(header)).toBe(BigInt.asUintN(128, expected));
      expected += BigInt(data.length / 16);
    }
    const page = emptyPage(target);
    for (const packet of [...sent].reverse()) {
      expect(putPacket(target, 'RECEIVE_UPDATE_DATA', received.handle, page, packet)).toBe(STATUS.SUCCESS);
      expect(hex(target.seenBy(received.asid, page, packet.data.length))).toBe('5a'.repeat(packet.data.length));
    }

    source.onGuest('SEND_CANCEL', guest.handle);
    sendStart(source, { handle: guest.handle, ...targetCertificates(target) });
    const again = sendUpdate(source, 'SEND_UPDATE_DATA', guest.handle, guest.page, PAGE_SIZE);
    expect(first(again.header)).not.toBe(BigInt.asUintN(128, expected));
    expect(hex(again.data)).not.toBe(hex(sent[1]?.data ?? new Uint8Array(0)));
  });

  it('runs on at the source after SEND_CANCEL, with what ATTESTATION reports unchanged', () => {
    const { source, guest } = inTransit();
    expect(source.onGuest('SEND_CANCEL', guest.handle).status).toBe(STATUS.SUCCESS);
    expect(source.processor.guests()[0]?.state).toBe('running');
    expect(hex(source.seenBy(guest.asid, guest.page, 16))).toBe('5a'.repeat(16));
  });
});

describe('SEND_UPDATE_DATA', () => {
  it('answers a query with both lengths', () => {
    const { source, guest } = inTransit();
    const none = source.issue('SEND_UPDATE_DATA', PACKET, set(PACKET.handle, guest.handle));
    expect([none.status, PACKET.hdrLength.get(none.buffer)]).toEqual([STATUS.INVALID_LENGTH, 52]);
    const query = source.issue('SEND_UPDATE_DATA', PACKET, set(PACKET.handle, guest.handle), set(PACKET.guestLength, 256));
    expect([query.status, PACKET.hdrLength.get(query.buffer), PACKET.transLength.get(query.buffer)]).toEqual([
      STATUS.INVALID_LENGTH,
      52,
      256,
    ]);
  });

  it('wants guest memory to be named with the C-bit', () => {
    const { source, guest } = inTransit();
    const send = (guestPaddr: number) =>
      source.issue(
        'SEND_UPDATE_DATA',
        PACKET,
        set(PACKET.handle, guest.handle),
        set(PACKET.hdrPaddr, emptyPage(source)),
        set(PACKET.hdrLength, 52),
        set(PACKET.guestPaddr, guestPaddr),
        set(PACKET.guestLength, 16),
        set(PACKET.transPaddr, emptyPage(source)),
        set(PACKET.transLength, 16),
      ).status;
    expect(send(guest.page)).toBe(STATUS.INVALID_ADDRESS);
    expect(send(C_BIT + guest.page)).toBe(STATUS.SUCCESS);
    expect(send(C_BIT + 2 ** 42)).toBe(STATUS.INVALID_ADDRESS);
  });
});

describe('SEND_START', () => {
  function tryToSend(
    policy: number,
    change: (certificates: ReturnType<typeof targetCertificates>) => Partial<typeof certificates>,
  ) {
    const [source, target] = [host('source'), host('target')];
    const guest = guestInState(source, 'running', 5, policy);
    const certificates = targetCertificates(target);
    return sendStart(source, { handle: guest.handle, ...certificates, ...change(certificates) }).status;
  }
  const flipped = (bytes: Uint8Array, at: number): Uint8Array => bytes.map((byte, index) => (index === at ? byte ^ 1 : byte));
  const part = (index: number, offset: number): number => index * SEV_CERTIFICATE.size + offset;
  const SIG1 = SEV_CERTIFICATE.sig1.offset;
  const SIG2 = SEV_CERTIFICATE.sig2.offset;

  it('answers a short session buffer with 128', () => {
    const rig = host('source');
    const { handle } = guestInState(rig, 'running', 5);
    const answer = rig.issue('SEND_START', SEND_START, set(SEND_START.handle, handle));
    expect([answer.status, SEND_START.sessionLength.get(answer.buffer)]).toEqual([STATUS.INVALID_LENGTH, 128]);
  });

  it('checks the length of every certificate, then the policy, then the PDH, whatever the policy', () => {
    const short = (bytes: Uint8Array): Uint8Array => bytes.subarray(1);
    expect(tryToSend(8, ({ pdh }) => ({ pdh: short(pdh) }))).toBe(STATUS.INVALID_LENGTH);
    expect(tryToSend(8, ({ chain }) => ({ chain: short(chain) }))).toBe(STATUS.INVALID_LENGTH);
    expect(tryToSend(8, ({ amd }) => ({ amd: short(amd) }))).toBe(STATUS.INVALID_LENGTH);
    expect(tryToSend(8, ({ pdh }) => ({ pdh: flipped(pdh, 8) }))).toBe(STATUS.POLICY_FAILURE);
    expect(tryToSend(0, ({ pdh }) => ({ pdh: flipped(pdh, 8) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(0, ({ pdh }) => ({ pdh: flipped(pdh, 0x14) }))).toBe(STATUS.INVALID_CERTIFICATE);
  });

  it('checks no signature when no policy bit asks for it', () => {
    expect(tryToSend(0, ({ chain, amd }) => ({ chain: new Uint8Array(chain.length), amd: new Uint8Array(amd.length) }))).toBe(
      STATUS.SUCCESS,
    );
  });

  it('sends a guest with POLICY.SEV to a platform whose chain ends in the root, and to no other', () => {
    const sev = 1 << 5;
    expect(tryToSend(sev, () => ({}))).toBe(STATUS.SUCCESS);
    expect(tryToSend(sev, ({ pdh }) => ({ pdh: flipped(pdh, SIG1) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(sev, ({ chain }) => ({ chain: flipped(chain, part(0, SIG2)) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(sev, ({ chain }) => ({ chain: flipped(chain, part(2, SIG1)) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(sev, ({ amd }) => ({ amd: flipped(amd, 1599) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(sev, ({ amd }) => ({ amd: flipped(amd, 3199) }))).toBe(STATUS.INVALID_CERTIFICATE);
    expect(tryToSend(sev, ({ chain }) => ({ chain: flipped(chain, part(1, SIG1)) }))).toBe(STATUS.SUCCESS);
  });

  it('sends a guest with POLICY.DOMAIN only to platforms of the same owner', () => {
    const domain = 1 << 4;
    expect(tryToSend(domain, () => ({}))).toBe(STATUS.POLICY_FAILURE);
    expect(tryToSend(domain, ({ chain }) => ({ chain: flipped(chain, part(0, SIG1)) }))).toBe(STATUS.INVALID_CERTIFICATE);

    const [source, target] = [host('source'), host('target')];
    const owner = keyPairFromSeed(createEntropy('owner of both').bytes(56));
    for (const rig of [source, target]) importOwner(rig, owner);
    const guest = guestInState(source, 'running', 5, domain);
    expect(sendStart(source, { handle: guest.handle, ...targetCertificates(target) }).status).toBe(STATUS.SUCCESS);
  });

  it('compares the target version with the policy', () => {
    const policy = (55 << 24) | (1 << 16);
    expect(tryToSend(policy, () => ({}))).toBe(STATUS.SUCCESS);
    const older = (pdh: Uint8Array): Uint8Array => {
      const bytes = pdh.slice();
      SEV_CERTIFICATE.apiMinor.set(bytes, 54);
      return bytes;
    };
    expect(tryToSend(policy, ({ pdh }) => ({ pdh: older(pdh) }))).toBe(STATUS.POLICY_FAILURE);
  });
});

describe('RECEIVE_START', () => {
  it('accepts a session for the platform it was made for, with its policy, and only there', () => {
    const { target, session, pdh } = inTransit();
    expect(receiveStart(target, { policy: 1, pdh, session }).status).toBe(STATUS.BAD_MEASUREMENT);
    expect(receiveStart(host('third'), { policy: 0, pdh, session }).status).toBe(STATUS.BAD_MEASUREMENT);
    expect(receiveStart(target, { policy: 0, pdh, session: session.subarray(1) }).status).toBe(STATUS.INVALID_LENGTH);
    expect(receiveStart(target, { policy: 0, pdh: pdh.subarray(1), session }).status).toBe(STATUS.INVALID_LENGTH);
    // Lengths come before the policy: 0xff is a version that the firmware does not have.
    expect(receiveStart(target, { policy: 0xff_0000, pdh, session }).status).toBe(STATUS.POLICY_FAILURE);
    expect(receiveStart(target, { policy: 0xff_0000, pdh, session: session.subarray(1) }).status).toBe(STATUS.INVALID_LENGTH);
    for (let at = 0; at < 128; at += 9) {
      const flipped = session.map((byte, index) => (index === at ? byte ^ 1 : byte));
      expect(receiveStart(target, { policy: 0, pdh, session: flipped }).status).toBe(STATUS.BAD_MEASUREMENT);
    }
    expect(target.issue('PDH_GEN').status).toBe(STATUS.SUCCESS);
    expect(receiveStart(target, { policy: 0, pdh, session }).status).toBe(STATUS.BAD_MEASUREMENT);
  });
});

/** PEK_CSR, the owner's signature, PEK_CERT_IMPORT. */
function importOwner(rig: Rig, key: ReturnType<typeof keyPairFromSeed>): void {
  const csrPaddr = rig.place(new Uint8Array(SEV_CERTIFICATE.size));
  rig.issue('PEK_CSR', PEK_CSR, set(PEK_CSR.csrPaddr, csrPaddr), set(PEK_CSR.csrLength, SEV_CERTIFICATE.size));
  const pek = addSignature(rig.cells(csrPaddr, SEV_CERTIFICATE.size), { usage: USAGE.OCA, key });
  const oca = createCertificate(USAGE.OCA, key.publicKey, { major: 1, minor: 55 }, [{ usage: USAGE.OCA, key }]);
  const answer = rig.issue(
    'PEK_CERT_IMPORT',
    PEK_CERT_IMPORT,
    set(PEK_CERT_IMPORT.pekCertPaddr, rig.place(pek)),
    set(PEK_CERT_IMPORT.pekCertLength, pek.length),
    set(PEK_CERT_IMPORT.ocaCertPaddr, rig.place(oca)),
    set(PEK_CERT_IMPORT.ocaCertLength, oca.length),
  );
  expect(answer.status).toBe(STATUS.SUCCESS);
  expect(rig.exportCertificates().chain.length).toBe(CHAIN_LENGTH);
}
