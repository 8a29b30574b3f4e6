import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { decodeEcSignature } from '../../../../../server/hardware/amd/certificates.js';
import { type PublicKey, verifySignature } from '../../../../../server/hardware/amd/p384.js';
import { REPORT, REPORT_SIGNED_LENGTH } from '../../../../../server/hardware/amd/snp/attestation-report.js';
import { SNP_CONFIG, SNP_VLEK_LOAD } from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { CPUID_ENTRY, CPUID_PAGE } from '../../../../../server/hardware/amd/snp/cpuid-page.js';
import * as der from '../../../../../server/hardware/amd/snp/der.js';
import { GUEST_FIELD, KEY_REQUEST } from '../../../../../server/hardware/amd/snp/derived-key.js';
import { MESSAGE_HEADER, MESSAGE_TYPE, openMessage, sealMessage } from '../../../../../server/hardware/amd/snp/guest-message.js';
import { STATUS } from '../../../../../server/hardware/amd/status.js';
import { hex, jsonVector, set, unhex, VECTORS_NEEDED, vector, vectorsAbsent } from '../rig.js';
import { initialised, type SnpRig } from './snp-rig.js';

function publicKeyOf(certificate: X509Certificate): PublicKey {
  const { x, y } = certificate.publicKey.export({ format: 'jwk' });
  if (x === undefined || y === undefined) throw new Error('not an EC key');
  return { x: Buffer.from(x, 'base64url'), y: Buffer.from(y, 'base64url') };
}

/** Whether a report carries a signature of a certificate's key. */
function isSignedBy(report: Uint8Array, certificate: Uint8Array): boolean {
  const signature = decodeEcSignature(REPORT.signature.get(report));
  const key = publicKeyOf(new X509Certificate(certificate));
  return signature !== null && verifySignature('sha384', key, report.subarray(0, REPORT_SIGNED_LENGTH), signature);
}

const reportRequest = (vmpl: number): Uint8Array => {
  const payload = new Uint8Array(96);
  payload[64] = vmpl;
  return payload;
};

describe('guest messages', () => {
  it.skipIf(vectorsAbsent)(`are sealed as the model's vector has it (${VECTORS_NEEDED})`, () => {
    const row = jsonVector('selfcomputed-guestmsg.json');
    const text = (name: string): string => {
      const value: unknown = typeof row === 'object' && row !== null ? Object(row)[name] : undefined;
      if (typeof value !== 'string') throw new Error(`no ${name}`);
      return value;
    };
    const message = { type: MESSAGE_TYPE.REPORT_REQ, seqno: 1n, vmpck: 0, payload: unhex(text('payloadPlain')) };
    const page = sealMessage(unhex(text('vmpck0')), message);
    expect(hex(page.subarray(0, 96 + 96))).toBe(text('messageHex'));
    expect(hex(openMessage(unhex(text('vmpck0')), page)?.payload ?? unhex(''))).toBe(text('payloadPlain'));
  });

  it('count: only the successor of the last number is answered, and a failure leaves the count alone', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const ask = (seqno: bigint, vmpck = 0) =>
      rig.ask(guest, { type: MESSAGE_TYPE.REPORT_REQ, seqno, vmpck, payload: reportRequest(3) });
    expect(ask(2n).status).toBe(STATUS.INVALID_PARAM);
    const first = ask(1n);
    expect([first.status, first.answer?.seqno, first.answer?.type]).toEqual([STATUS.SUCCESS, 2n, MESSAGE_TYPE.REPORT_RSP]);
    expect(ask(1n).status).toBe(STATUS.INVALID_PARAM);
    expect(ask(2n).status).toBe(STATUS.INVALID_PARAM);
    expect(ask(3n).status).toBe(STATUS.SUCCESS);
    expect(ask(1n, 2).status).toBe(STATUS.SUCCESS);
  });

  it('are refused when a bit of header, payload or tag is flipped, and when the key is another guest’s', () => {
    const rig = initialised();
    const [guest, other] = [rig.runningGuest(1), rig.runningGuest(2)];
    const message = { type: MESSAGE_TYPE.REPORT_REQ, seqno: 1n, vmpck: 0, payload: reportRequest(0) };
    const page = sealMessage(guest.vmpcks[0] ?? unhex(''), message);
    for (const at of [0x00, 0x0f, 0x20, 0x28, 0x30, 0x31, 0x32, 0x34, 0x35, 0x36, 0x38, 0x3c, 0x3d, 0x60, 0xbf]) {
      const flipped = Uint8Array.from(page);
      flipped[at] ^= 1;
      expect([at, rig.request(guest.context, flipped).status]).toEqual([at, STATUS.INVALID_PARAM]);
    }
    const tooLong = Uint8Array.from(page);
    MESSAGE_HEADER.payloadSize.set(tooLong, 4096);
    expect(rig.request(guest.context, tooLong).status).toBe(STATUS.INVALID_PARAM);
    expect(rig.request(other.context, page).status).toBe(STATUS.INVALID_PARAM);
    expect(rig.request(guest.context, page).status).toBe(STATUS.SUCCESS);
  });

  it('come from a page of the host’s and go to one of the firmware’s', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const page = sealMessage(guest.vmpcks[0] ?? unhex(''), {
      type: MESSAGE_TYPE.REPORT_REQ,
      seqno: 1n,
      vmpck: 0,
      payload: reportRequest(0),
    });
    expect(rig.request(guest.context, page, rig.frame(), rig.frame()).status).toBe(STATUS.INVALID_PAGE_STATE);
    expect(rig.request(guest.context, page, rig.firmwarePage()).status).toBe(STATUS.INVALID_PARAM);
    expect(rig.request(guest.context, page).status).toBe(STATUS.SUCCESS);
  });

  it('of unknown types and of wrong lengths, or with reserved bits, are refused', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const ask = (type: number, payload: Uint8Array, vmpck = 0) => rig.ask(guest, { type, seqno: 1n, vmpck, payload }).status;
    expect(ask(99, reportRequest(0))).toBe(STATUS.INVALID_PARAM);
    expect(ask(MESSAGE_TYPE.REPORT_REQ, reportRequest(0).subarray(1))).toBe(STATUS.INVALID_PARAM);
    expect(ask(MESSAGE_TYPE.REPORT_REQ, reportRequest(0).with(72, 1))).toBe(STATUS.INVALID_PARAM);
    expect(ask(MESSAGE_TYPE.REPORT_REQ, reportRequest(0).with(68, 4))).toBe(STATUS.INVALID_PARAM);
    expect(ask(MESSAGE_TYPE.TSC_INFO_REQ, new Uint8Array(127))).toBe(STATUS.INVALID_PARAM);
    expect(ask(MESSAGE_TYPE.TSC_INFO_REQ, new Uint8Array(128))).toBe(STATUS.SUCCESS);
  });

  it('about CPUID are answered with the values that a CPUID page would be accepted with', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const ask = (seqno: bigint, payload: Uint8Array) =>
      rig.ask(guest, { type: MESSAGE_TYPE.CPUID_REQ, seqno, vmpck: 0, payload });
    const request = (eax: number, count = 2) => {
      const payload = new Uint8Array(CPUID_PAGE.size + 2 * CPUID_ENTRY.size);
      CPUID_PAGE.count.set(payload, count);
      const entry = payload.subarray(CPUID_PAGE.size + CPUID_ENTRY.size);
      CPUID_ENTRY.eaxIn.set(entry, 0x8000_001f);
      CPUID_ENTRY.eax.set(entry, eax);
      CPUID_ENTRY.ebx.set(entry, 51);
      return payload;
    };
    const read = ({ status, answer }: ReturnType<typeof ask>) => {
      const payload = answer?.payload ?? new Uint8Array(CPUID_PAGE.size);
      const entry = payload.subarray(CPUID_PAGE.size + CPUID_ENTRY.size);
      const [result, count] = new Uint32Array(payload.slice(0, 8).buffer);
      return { status, type: answer?.type, result, count, length: payload.length, eax: CPUID_ENTRY.eax.get(entry) };
    };
    const accepted = { status: STATUS.SUCCESS, type: MESSAGE_TYPE.CPUID_RSP, count: 2, length: 16 + 2 * 48 };
    expect(read(ask(1n, request(0b11010)))).toEqual({ ...accepted, result: STATUS.SUCCESS, eax: 0b11010 });
    // Bit 31 is no feature of this platform.
    const refused = read(ask(3n, request(0x8000_001a)));
    expect(refused).toEqual({ ...accepted, result: STATUS.INVALID_PARAM, eax: 0b11010 });
    for (const malformed of [request(0, 3), request(0).subarray(0, 15), request(0).with(4, 1), new Uint8Array(16 + 65 * 48)])
      expect(ask(5n, malformed).status).toBe(STATUS.INVALID_PARAM);
  });

  it('for more privileged VMPLs are answered with the refusal, and count', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const ask = (seqno: bigint, vmpl: number, keySelect = 0) => {
      const payload = reportRequest(vmpl).with(68, keySelect);
      const { status, answer } = rig.ask(guest, { type: MESSAGE_TYPE.REPORT_REQ, seqno, vmpck: 2, payload });
      const view = new DataView((answer?.payload ?? unhex('')).slice().buffer);
      return [status, answer?.seqno, view.getUint32(0, true), view.getUint32(4, true)];
    };
    expect(ask(1n, 4)).toEqual([STATUS.SUCCESS, 2n, STATUS.INVALID_PARAM, 0]);
    expect(ask(3n, 1)).toEqual([STATUS.SUCCESS, 4n, STATUS.INVALID_PARAM, 0]);
    expect(ask(5n, 2, 3)).toEqual([STATUS.SUCCESS, 6n, STATUS.INVALID_PARAM, 0]);
    expect(ask(7n, 2)).toEqual([STATUS.SUCCESS, 8n, STATUS.SUCCESS, REPORT.size]);
  });
});

describe('attestation reports', () => {
  it('say what the guest and the platform are, under a VCEK that chains to the simulated root', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const { report } = rig.report(guest);
    expect(REPORT.version.get(report)).toBe(3);
    expect(hex(REPORT.reportData.get(report))).toBe('42'.repeat(64));
    expect(REPORT.policy.get(report)).toBe(0x30000n);
    expect(hex(REPORT.reportIdMa.get(report))).toBe('ff'.repeat(32));
    const vcek = rig.processor.vcekCertificate();
    expect(isSignedBy(report, vcek)).toBe(true);
    for (const at of [0, 0x8, 0x90, 0x29f]) {
      const flipped = Uint8Array.from(report);
      flipped[at] ^= 1;
      expect(isSignedBy(flipped, vcek)).toBe(false);
    }
    const { ark, ask } = rig.keyDistribution.x509Chain();
    const [leaf, intermediate, root] = [vcek, ask, ark].map((bytes) => new X509Certificate(bytes));
    if (leaf === undefined || intermediate === undefined || root === undefined) throw new Error('no chain');
    expect(leaf.verify(intermediate.publicKey) && intermediate.verify(root.publicKey) && root.verify(root.publicKey)).toBe(true);
    expect([leaf.checkIssued(intermediate), intermediate.checkIssued(root), root.ca]).toEqual([true, true, true]);
    expect(leaf.subject).toContain('CN=SEV-VCEK');
  });

  it('verify with openssl’s command line: chain and signature', () => {
    const rig = initialised();
    const { report } = rig.report(rig.runningGuest());
    const { ark, ask } = rig.keyDistribution.x509Chain();
    const folder = mkdtempSync(join(tmpdir(), 'simkvm-report-'));
    const file = (name: string, contents: Uint8Array | string): string => {
      writeFileSync(join(folder, name), contents);
      return join(folder, name);
    };
    const pem = (bytes: Uint8Array): string => new X509Certificate(bytes).toString();
    const signature = decodeEcSignature(REPORT.signature.get(report));
    if (signature === null) throw new Error('no signature');
    const encodedSignature = der.sequence(der.integer(signature.r), der.integer(signature.s));
    try {
      const vcek = new X509Certificate(rig.processor.vcekCertificate());
      const leaf = file('vcek.pem', vcek.toString());
      const chain = ['-CAfile', file('ark.pem', pem(ark)), '-untrusted', file('ask.pem', pem(ask))];
      expect(execFileSync('openssl', ['verify', ...chain, leaf]).toString()).toContain('OK');
      const key = file('vcek.pub', vcek.publicKey.export({ format: 'pem', type: 'spki' }));
      const encoded = file('signature.der', encodedSignature);
      const signed = file('signed.bin', report.subarray(0, REPORT_SIGNED_LENGTH));
      expect(execFileSync('openssl', ['dgst', '-sha384', '-verify', key, '-signature', encoded, signed]).toString()).toContain(
        'Verified OK',
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('are signed by another key at another reported version', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const vcek = rig.processor.vcekCertificate();
    expect(rig.issue('SNP_CONFIG', SNP_CONFIG, set(SNP_CONFIG.reportedTcb, 3n)).status).toBe(STATUS.SUCCESS);
    const { report } = rig.report(guest);
    expect(isSignedBy(report, vcek)).toBe(false);
    expect(isSignedBy(report, rig.processor.vcekCertificate())).toBe(true);
  });

  it('hide the chip and its key where SNP_CONFIG says so', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const chipId = REPORT.chipId.get(rig.report(guest).report);
    expect(chipId.some((byte) => byte !== 0)).toBe(true);
    rig.issue('SNP_CONFIG', SNP_CONFIG, set(SNP_CONFIG.flags, 3));
    const { report } = rig.report(guest, 3n);
    expect(REPORT.chipId.get(report).every((byte) => byte === 0)).toBe(true);
    expect(REPORT.signature.get(report).every((byte) => byte === 0)).toBe(true);
    expect((REPORT.keyInfo.get(report) >> 2) & 7).toBe(7);
  });

  it('are signed by a VLEK once one is loaded, or by the key that the request selects', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const load = (wrapped: Uint8Array) => {
      const settings = [set(SNP_VLEK_LOAD.length, 16), set(SNP_VLEK_LOAD.wrappedPaddr, rig.place(wrapped))];
      return rig.issue('SNP_VLEK_LOAD', SNP_VLEK_LOAD, ...settings).status;
    };
    const [VCEK, VLEK] = [1, 2];
    expect(rig.report(guest, 1n, VLEK).status).toBe(STATUS.INVALID_KEY);
    const { wrapped, certificate } = rig.processor.orderVlek('a cloud');
    const altered = Uint8Array.from(wrapped);
    altered[20] ^= 1;
    expect(load(altered)).toBe(STATUS.BAD_MEASUREMENT);
    expect(load(wrapped)).toBe(STATUS.SUCCESS);
    expect(isSignedBy(rig.report(guest, 3n).report, certificate)).toBe(true);
    expect(isSignedBy(rig.report(guest, 5n, VLEK).report, certificate)).toBe(true);
    expect(isSignedBy(rig.report(guest, 7n, VCEK).report, rig.processor.vcekCertificate())).toBe(true);
    expect(rig.issue('SNP_VLEK_LOAD', SNP_VLEK_LOAD).status).toBe(STATUS.INVALID_LENGTH);
  });

  it('of a guest that was launched without the right to it are not signed by the VCEK', () => {
    const rig = initialised();
    const guest = rig.launchingGuest();
    expect(rig.launchFinish(guest.context, 4)).toBe(STATUS.SUCCESS);
    expect(rig.report(guest).status).toBe(STATUS.INVALID_KEY);
  });

  it.skipIf(vectorsAbsent)(`of real machines parse and verify, and not with a bit flipped (${VECTORS_NEEDED})`, () => {
    const milan = unhex(Buffer.from(vector('snp-report/milan-v2-report.hex')).toString('ascii').trim());
    const other = vector('snp-report/gosev-attestation.bin').subarray(0, REPORT.size);
    for (const [report, vcek, policy] of [
      [milan, vector('snp-report/milan-vcek.der'), 0x30000n],
      [other, vector('snp-report/gosev-vcek.der'), 0xb0000n],
    ] as const) {
      expect(REPORT.policy.get(report)).toBe(policy);
      expect(isSignedBy(report, vcek)).toBe(true);
      const flipped = Uint8Array.from(report);
      flipped[0x90] ^= 1;
      expect(isSignedBy(flipped, vcek)).toBe(false);
    }
  });
});

describe('derived keys', () => {
  const keyRequest = (change: (payload: Uint8Array) => void = () => {}): Uint8Array => {
    const payload = new Uint8Array(KEY_REQUEST.size);
    change(payload);
    return payload;
  };
  /** Status of the command, that of the answer, and the key. */
  function ask(rig: SnpRig, guest: ReturnType<SnpRig['runningGuest']>, seqno: bigint, payload: Uint8Array, vmpck = 0) {
    const { status, answer } = rig.ask(guest, { type: MESSAGE_TYPE.KEY_REQ, seqno, vmpck, payload });
    return { status, refusal: answer?.payload[0] ?? null, key: hex(answer?.payload.subarray(32, 64) ?? unhex('')) };
  }
  const derive = (rig: SnpRig, guest: ReturnType<SnpRig['runningGuest']>, seqno: bigint, fields: bigint, root = 0) =>
    ask(
      rig,
      guest,
      seqno,
      keyRequest((payload) => {
        KEY_REQUEST.guestFieldSelect.set(payload, fields);
        KEY_REQUEST.rootKeySelect.set(payload, root);
      }),
    );

  it('are the same for the same guest and selection, and depend on the root and on every field', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const selections = [0n, GUEST_FIELD.POLICY, GUEST_FIELD.MEASUREMENT, GUEST_FIELD.POLICY | GUEST_FIELD.MEASUREMENT];
    const keys = selections.map((fields, index) => derive(rig, guest, BigInt(2 * index + 1), fields).key);
    expect(new Set(keys).size).toBe(selections.length);
    expect(derive(rig, guest, 9n, 0n).key).toBe(keys[0]);
    expect(derive(rig, guest, 11n, 0n, 1).key).not.toBe(keys[0]);
    const twin = rig.runningGuest(2);
    expect(derive(rig, twin, 1n, GUEST_FIELD.MEASUREMENT).key).toBe(keys[2]);
    expect(derive(rig, twin, 3n, 0n, 1).key).not.toBe(derive(rig, guest, 13n, 0n, 1).key);
  });

  it('come from the VLEK once one is loaded, or from the key that the request selects', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const [ANY, VCEK, VLEK] = [0 << 1, 1 << 1, 2 << 1];
    const chip = derive(rig, guest, 1n, 0n, ANY).key;
    expect(derive(rig, guest, 3n, 0n, VCEK).key).toBe(chip);
    expect(derive(rig, guest, 5n, 0n, VLEK)).toEqual({
      status: STATUS.SUCCESS,
      refusal: STATUS.INVALID_KEY,
      key: '00'.repeat(32),
    });
    expect(derive(rig, guest, 7n, 0n, 3 << 1).refusal).toBe(STATUS.INVALID_PARAM);
    const settings = [
      set(SNP_VLEK_LOAD.length, 16),
      set(SNP_VLEK_LOAD.wrappedPaddr, rig.place(rig.processor.orderVlek('a').wrapped)),
    ];
    expect(rig.issue('SNP_VLEK_LOAD', SNP_VLEK_LOAD, ...settings).status).toBe(STATUS.SUCCESS);
    const loaded = derive(rig, guest, 9n, 0n, VLEK);
    expect([loaded.refusal, loaded.key === chip]).toEqual([STATUS.SUCCESS, false]);
    expect(derive(rig, guest, 11n, 0n, ANY).key).toBe(loaded.key);
    expect(derive(rig, guest, 13n, 0n, VCEK).key).toBe(chip);
  });

  it('are refused for unknown fields and roots', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    expect(derive(rig, guest, 1n, 1n << 20n).status).toBe(STATUS.INVALID_PARAM);
    expect(derive(rig, guest, 1n, 0n, 8).status).toBe(STATUS.INVALID_PARAM);
    expect(derive(rig, guest, 1n, 0n).status).toBe(STATUS.SUCCESS);
  });

  it('are zeros with a refusal for versions that are not committed and a VMPL that is another’s, and the message counts', () => {
    const rig = initialised();
    const guest = rig.runningGuest();
    const refusal = { status: STATUS.SUCCESS, refusal: STATUS.INVALID_PARAM, key: '00'.repeat(32) };
    const tcb = keyRequest((payload) => KEY_REQUEST.tcbVersion.set(payload, 0xffn));
    expect(ask(rig, guest, 1n, tcb)).toEqual(refusal);
    const svn = keyRequest((payload) => KEY_REQUEST.guestSvn.set(payload, 1));
    expect(ask(rig, guest, 3n, svn)).toEqual(refusal);
    expect(ask(rig, guest, 1n, keyRequest(), 1)).toEqual(refusal);
    expect(ask(rig, guest, 5n, keyRequest()).refusal).toBe(STATUS.SUCCESS);
  });
});
