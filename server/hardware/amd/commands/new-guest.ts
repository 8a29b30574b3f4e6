import { parseCertificate, SEV_CERTIFICATE, USAGE } from '../certificates.js';
import type { Firmware } from '../firmware.js';
import type { GuestContext, GuestState } from '../guest-context.js';
import type { InitialisedPlatform } from '../platform-state.js';
import { hasPolicy, isAtLeast, POLICY, policyApi } from '../policy.js';
import { openSession, SESSION, type TransportKeys } from '../session.js';
import { STATUS, type Status } from '../status.js';

/** What LAUNCH_START and RECEIVE_START have in common: a policy, a key that may be shared, and a session (sev-firmware.md 2.6, 2.7). */

const VEK_LENGTH = 16;
const POLICY_RESERVED = 0xffc0;

export interface GuestRequest {
  readonly policy: number;
  /** Handle of the guest whose key the new one shares; 0 for a key of its own. */
  readonly sharedWith: number;
}

/** Checks a request for a new guest: first key sharing, then the policy's version and SEV-ES, in this order. */
export function checkGuestRequest(
  firmware: Firmware,
  platform: InitialisedPlatform,
  { policy, sharedWith }: GuestRequest,
): Status {
  if ((policy & POLICY_RESERVED) !== 0) return STATUS.INVALID_PARAM;
  if (sharedWith !== 0) {
    const owner = platform.guests.get(sharedWith);
    if (owner === undefined) return STATUS.INVALID_GUEST;
    if (owner.policy !== policy || hasPolicy(policy, POLICY.NOKS)) return STATUS.POLICY_FAILURE;
  }
  if (!isAtLeast(firmware.version, policyApi(policy))) return STATUS.POLICY_FAILURE;
  return hasPolicy(policy, POLICY.ES) && !platform.es ? STATUS.UNSUPPORTED : STATUS.SUCCESS;
}

/** Where the certificate of the other party and the session blob that it made are. */
export interface SessionRequest {
  readonly policy: number;
  readonly certPaddr: number;
  readonly certLength: number;
  readonly sessionPaddr: number;
  readonly sessionLength: number;
}

/** Whether certificate and session blob have the lengths of such. */
export const hasSessionLengths = ({ certLength, sessionLength }: SessionRequest): boolean =>
  certLength === SEV_CERTIFICATE.size && sessionLength === SESSION.size;

/**
 * Opens the session that another party made for this platform's PDH. Its certificate is not verified by anybody's
 * signature: what proves the party is that it knows the keys.
 */
export function acceptSession(
  firmware: Firmware,
  platform: InitialisedPlatform,
  request: SessionRequest,
): TransportKeys | Status {
  if (!hasSessionLengths(request)) return STATUS.INVALID_LENGTH;
  const certificateBytes = firmware.memory.read(request.certPaddr, request.certLength, null);
  const session = firmware.memory.read(request.sessionPaddr, request.sessionLength, null);
  if (certificateBytes === null || session === null) return STATUS.INVALID_ADDRESS;
  const certificate = parseCertificate(certificateBytes, USAGE.PDH);
  if (certificate === null) return STATUS.INVALID_CERTIFICATE;
  const opened = openSession(platform.identity.pdh.key(), certificate.publicKey, request.policy, session);
  if (opened.kind === 'bad-peer') return STATUS.INVALID_CERTIFICATE;
  return opened.kind === 'opened' ? opened.keys : STATUS.BAD_MEASUREMENT;
}

/**
 * Makes the context of a checked request; null when no context is left. There are as many as ASIDs, which is a
 * model: the size of the firmware's table is not published.
 */
export function createGuest(
  firmware: Firmware,
  platform: InitialisedPlatform,
  { policy, sharedWith }: GuestRequest,
  state: GuestState,
): GuestContext | null {
  if (platform.guests.size >= firmware.asidKeys.range.count) return null;
  const vek = platform.guests.get(sharedWith)?.vek ?? firmware.random.bytes(VEK_LENGTH);
  firmware.lastHandle += 1;
  const guest: GuestContext = { handle: firmware.lastHandle, policy, vek, activation: null, state };
  platform.guests.set(guest.handle, guest);
  platform.kind = 'working';
  return guest;
}
