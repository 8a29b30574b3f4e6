import { AMD_CERTIFICATE_LENGTHS, isEndorsedBy, isSameAmdKey, isSignedByAmd, parseAmdCertificate } from '../amd-certificate.js';
import { type Certificate, CHAIN_LENGTH, isSignedBy, parseCertificate, SEV_CERTIFICATE, USAGE } from '../certificates.js';
import { type Command, type GuestCall, guestCommand, input, inputOutput, lengthQuery } from '../command.js';
import { GUEST_HANDLE, SEND_START } from '../command-buffers.js';
import type { Firmware } from '../firmware.js';
import type { InitialisedPlatform } from '../platform-state.js';
import { hasPolicy, isAtLeast, POLICY, policyApi } from '../policy.js';
import { createSession, createTransportKeys, SESSION } from '../session.js';
import { STATUS, type Status } from '../status.js';

/** SEND_START, SEND_FINISH and SEND_CANCEL (sev-firmware.md 2.7). The packets between them are in `packets.ts`. */

/** The certificates of the platform that a guest is to be sent to, as the caller collected them. */
interface TargetCertificates {
  readonly pdh: Uint8Array;
  /** PEK, OCA, CEK. */
  readonly platform: Uint8Array;
  /** ASK, ARK. */
  readonly amd: Uint8Array;
}

interface PlatformChain {
  readonly pek: Certificate;
  readonly oca: Certificate;
  readonly cek: Certificate;
}

function readCertificates({ memory }: Firmware, buffer: Uint8Array): TargetCertificates | Status {
  const pdhLength = SEND_START.pdhCertLength.get(buffer);
  const platLength = SEND_START.platCertsLength.get(buffer);
  const amdLength = SEND_START.amdCertsLength.get(buffer);
  if (pdhLength !== SEV_CERTIFICATE.size || platLength !== CHAIN_LENGTH) return STATUS.INVALID_LENGTH;
  if (!AMD_CERTIFICATE_LENGTHS.includes(amdLength / 2)) return STATUS.INVALID_LENGTH;
  const pdh = memory.read(SEND_START.pdhCertPaddr.get(buffer), pdhLength, null);
  const platform = memory.read(SEND_START.platCertsPaddr.get(buffer), platLength, null);
  const amd = memory.read(SEND_START.amdCertsPaddr.get(buffer), amdLength, null);
  return pdh === null || platform === null || amd === null ? STATUS.INVALID_ADDRESS : { pdh, platform, amd };
}

function parseChain(bytes: Uint8Array): PlatformChain | null {
  const part = (index: number): Uint8Array => bytes.subarray(index * SEV_CERTIFICATE.size, (index + 1) * SEV_CERTIFICATE.size);
  const pek = parseCertificate(part(0), USAGE.PEK);
  const oca = parseCertificate(part(1), USAGE.OCA);
  const cek = parseCertificate(part(2), USAGE.CEK);
  return pek === null || oca === null || cek === null ? null : { pek, oca, cek };
}

/** POLICY.SEV: the PDH belongs to a genuine platform, by PEK, CEK, ASK and the root that is fused into this chip. */
function isGenuine(firmware: Firmware, pdh: Certificate, { pek, cek }: PlatformChain, amd: Uint8Array): boolean {
  const ask = parseAmdCertificate(amd.subarray(0, amd.length / 2), USAGE.ASK);
  const ark = parseAmdCertificate(amd.subarray(amd.length / 2), USAGE.ARK);
  const root = firmware.rootKey();
  if (ask === null || ark === null || !isSameAmdKey(ark, root) || !isSignedByAmd(ark, root) || !isSignedByAmd(ask, ark))
    return false;
  return isEndorsedBy(cek, ask) && isSignedBy(pek, cek) && isSignedBy(pdh, pek);
}

/** POLICY.DOMAIN: the target has this platform's owner. Which status another owner gives is not verified. */
function checkDomain({ identity }: InitialisedPlatform, pdh: Certificate, { pek, oca }: PlatformChain): Status {
  if (!isSignedBy(pdh, pek) || !isSignedBy(pek, oca)) return STATUS.INVALID_CERTIFICATE;
  const own = SEV_CERTIFICATE.pubkey.get(identity.owner.certificate());
  return Buffer.from(own).equals(SEV_CERTIFICATE.pubkey.get(oca.bytes)) ? STATUS.SUCCESS : STATUS.POLICY_FAILURE;
}

/** Whether the policy lets the guest go to a platform; its PDH has been parsed. */
function checkTarget(
  firmware: Firmware,
  platform: InitialisedPlatform,
  policy: number,
  pdh: Certificate,
  target: TargetCertificates,
): Status {
  const wantsGenuine = hasPolicy(policy, POLICY.SEV);
  const wantsDomain = hasPolicy(policy, POLICY.DOMAIN);
  if (wantsGenuine || wantsDomain) {
    const chain = parseChain(target.platform);
    if (chain === null || (wantsGenuine && !isGenuine(firmware, pdh, chain, target.amd))) return STATUS.INVALID_CERTIFICATE;
    const status = wantsDomain ? checkDomain(platform, pdh, chain) : STATUS.SUCCESS;
    if (status !== STATUS.SUCCESS) return status;
  }
  return isAtLeast(pdh.api, policyApi(policy)) ? STATUS.SUCCESS : STATUS.POLICY_FAILURE;
}

function startSending({ firmware, platform, guest, state, buffer }: GuestCall<'running'>): Status {
  if (lengthQuery(buffer, SEND_START.sessionLength, SESSION.size)) return STATUS.INVALID_LENGTH;
  const target = readCertificates(firmware, buffer);
  if (typeof target === 'number') return target;
  const sessionPaddr = SEND_START.sessionPaddr.get(buffer);
  const writable = firmware.memory.checkWrite([sessionPaddr, SESSION.size]);
  if (writable !== STATUS.SUCCESS) return writable;
  if (hasPolicy(guest.policy, POLICY.NOSEND)) return STATUS.POLICY_FAILURE;
  const pdh = parseCertificate(target.pdh, USAGE.PDH);
  if (pdh === null) return STATUS.INVALID_CERTIFICATE;
  const status = checkTarget(firmware, platform, guest.policy, pdh, target);
  if (status !== STATUS.SUCCESS) return status;
  const transport = createTransportKeys(firmware.random);
  const session = createSession(platform.identity.pdh.key(), pdh.publicKey, guest.policy, transport, firmware.random);
  if (session === null) return STATUS.INVALID_CERTIFICATE;
  firmware.memory.write(sessionPaddr, session, null);
  SEND_START.policy.set(buffer, guest.policy);
  guest.state = { kind: 'send-update', transport, digest: state.digest };
  return STATUS.SUCCESS;
}

const sendStart = guestCommand({ name: 'SEND_START', states: ['running'], buffer: inputOutput(SEND_START), run: startSending });

const sendFinish = guestCommand({
  name: 'SEND_FINISH',
  states: ['send-update'],
  buffer: input(GUEST_HANDLE),
  run: ({ guest }) => {
    guest.state = { kind: 'sent' };
    return STATUS.SUCCESS;
  },
});

const sendCancel = guestCommand({
  name: 'SEND_CANCEL',
  states: ['send-update'],
  buffer: input(GUEST_HANDLE),
  run: ({ guest, state }) => {
    guest.state = { kind: 'running', digest: state.digest };
    return STATUS.SUCCESS;
  },
});

export const sendCommands: readonly Command[] = [sendStart, sendFinish, sendCancel];
