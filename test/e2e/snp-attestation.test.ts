import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { decodeEcSignature } from '../../server/hardware/amd/certificates.js';
import { REPORT, REPORT_SIGNED_LENGTH } from '../../server/hardware/amd/snp/attestation-report.js';
import * as der from '../../server/hardware/amd/snp/der.js';
import { MESSAGE_TYPE, openMessage, sealMessage } from '../../server/hardware/amd/snp/guest-message.js';
import { runSimkvm } from '../helpers/run-simkvm.js';
import { vmgexit } from './canary/canary-guest.js';
import { observedHost } from './canary/observed-host.js';
import {
  AP_RESET_HOLD,
  ASK,
  askWrongly,
  launchedGuest,
  PAGE,
  POLICY,
  REGISTER_GHCB,
  REQUEST,
  RESPONSE,
} from './canary/snp-guest.js';

/*
 * A guest asks for a report through its GHCB; its owner has the report and the certificates of the key distribution service as
 * files, and nothing else. What the guest's driver would encrypt, the test does, with the key that the daemon was seen to use.
 */
const REPORT_DATA = Uint8Array.from({ length: 64 }, (_, index) => index);

const folder = mkdtempSync(join(tmpdir(), 'simkvm-attestation-'));
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string, contents: Uint8Array | string): string => {
  writeFileSync(join(folder, name), contents);
  return join(folder, name);
};
const pem = (bytes: Uint8Array): string => new X509Certificate(bytes).toString();

/** A report that the guest has asked for, and the certificates of the platform. */
const attested = async () => {
  await using host = await observedHost('--snp');
  const pause = vmgexit(AP_RESET_HOLD);
  const code = Uint8Array.from([...REGISTER_GHCB, ...askWrongly(0), ...pause, ...ASK, ...pause]);
  const { process, vcpu, uaddr } = await launchedGuest(host.simkvm, code);
  const before = host.keys().length;
  expect((await vcpu.run()).reason).toBe('KVM_EXIT_AP_RESET_HOLD');
  const key = host
    .keys()
    .slice(before)
    .find(({ what }) => what === 'aes-256-gcm')?.bytes;
  if (key === undefined) throw new Error('the firmware has opened no message');
  const payload = new Uint8Array(96);
  payload.set(REPORT_DATA);
  const request = sealMessage(key, { type: MESSAGE_TYPE.REPORT_REQ, seqno: 1n, vmpck: 0, payload });
  await process.memory.write(uaddr + BigInt(REQUEST), request);
  expect((await vcpu.run()).reason).toBe('KVM_EXIT_AP_RESET_HOLD');
  const answer = openMessage(key, await process.memory.read(uaddr + BigInt(RESPONSE), PAGE));
  expect(answer?.type).toBe(MESSAGE_TYPE.REPORT_RSP);
  const report = Uint8Array.from(answer?.payload.subarray(32, 32 + REPORT.size) ?? []);
  const { ark_der: ark, ask_der: ask } = await host.simkvm.keyDistribution.getAuthorities();
  return { report, ark, ask, vcek: await host.simkvm.keyDistribution.getVcek() };
};

describe('a report that a guest gets over the wire', () => {
  it('verifies with simkvm attest verify, and with openssl', async () => {
    const { report, ark, ask, vcek } = await attested();
    const root = file('ark.pem', pem(ark));
    const chain = file('certs.pem', [vcek, ask, ark].map(pem).join(''));
    const expected = ['--report-data', Buffer.from(REPORT_DATA).toString('hex'), '--policy', String(POLICY)];
    const verify = (name: string, bytes: Uint8Array) =>
      runSimkvm('attest', 'verify', file(name, bytes), '--chain', chain, '--root', root, ...expected);
    const verdict = await verify('report.bin', report);
    expect(verdict.out).toContain('the report verifies');
    expect(verdict.code).toBe(0);
    const altered = report.slice();
    altered[0x90] = (altered[0x90] ?? 0) ^ 1;
    expect((await verify('altered.bin', altered)).code).toBe(1);

    const leaf = file('vcek.pem', pem(vcek));
    const authorities = ['-CAfile', root, '-untrusted', file('ask.pem', pem(ask))];
    expect(execFileSync('openssl', ['verify', ...authorities, leaf]).toString()).toContain('OK');
    const signature = decodeEcSignature(REPORT.signature.get(report));
    if (signature === null) throw new Error('no signature');
    const encoded = file('signature.der', der.sequence(der.integer(signature.r), der.integer(signature.s)));
    const key = file('vcek.pub', new X509Certificate(vcek).publicKey.export({ format: 'pem', type: 'spki' }));
    const signed = file('signed.bin', report.subarray(0, REPORT_SIGNED_LENGTH));
    const openssl = execFileSync('openssl', ['dgst', '-sha384', '-verify', key, '-signature', encoded, signed]);
    expect(openssl.toString()).toContain('Verified OK');
  });
});
