import { blob, struct, u32 } from '../byte-layout.js';
import { ALGORITHM, encodeEcSignature, USAGE } from '../certificates.js';
import { type Command, guestCommand, inputOutput, lengthQuery } from '../command.js';
import { ATTESTATION } from '../command-buffers.js';
import { sign } from '../p384.js';
import { STATUS } from '../status.js';

/** ATTESTATION (sev-firmware.md 3.7): a report on a guest, signed by the platform's PEK. */

/** The signature covers all bytes before `sigUsage`. */
export const ATTESTATION_REPORT = struct(208, {
  mnonce: blob(0, 16),
  digest: blob(16, 32),
  policy: u32(48),
  sigUsage: u32(52),
  sigAlgo: u32(56),
  signature: blob(64, 144),
});

/** The states in which it is legal are not verified. */
const attestation = guestCommand({
  name: 'ATTESTATION',
  states: ['launch-update', 'launch-secret', 'running', 'send-update'],
  buffer: inputOutput(ATTESTATION),
  run: ({ firmware, platform, guest, state, buffer }) => {
    if (lengthQuery(buffer, ATTESTATION.length, ATTESTATION_REPORT.size)) return STATUS.INVALID_LENGTH;
    const report = new Uint8Array(ATTESTATION_REPORT.size);
    ATTESTATION_REPORT.mnonce.set(report, ATTESTATION.mnonce.get(buffer));
    ATTESTATION_REPORT.digest.set(report, state.kind === 'launch-update' ? state.digest.value() : state.digest);
    ATTESTATION_REPORT.policy.set(report, guest.policy);
    ATTESTATION_REPORT.sigUsage.set(report, USAGE.PEK);
    ATTESTATION_REPORT.sigAlgo.set(report, ALGORITHM.ECDSA_SHA256);
    const signed = report.subarray(0, ATTESTATION_REPORT.sigUsage.offset);
    const signature = sign('sha256', platform.identity.pek.key().privateKey, signed);
    ATTESTATION_REPORT.signature.set(report, encodeEcSignature(signature));
    return firmware.memory.write(ATTESTATION.paddr.get(buffer), report, null);
  },
});

export const attestationCommands: readonly Command[] = [attestation];
