import { createECDH, randomBytes } from 'node:crypto';
import { blob, equal, u32Bytes } from './bytes.js';
import { decodeEcPoint } from './ec-key.js';
import { counterMode, deriveKey, hmac } from './kdf.js';
import { createGuestOwnerCertificate, parseSevCertificate } from './sev-certificate.js';

/** The keys of one launch: what travels is encrypted under `tek` and authenticated under `tik`, 16 bytes each. */
export interface TransportKeys {
  readonly tek: Uint8Array;
  readonly tik: Uint8Array;
}

/** What a guest owner makes for one launch on one platform. */
export interface LaunchSession {
  /** `session_uaddr` of KVM_SEV_LAUNCH_START, 128 bytes; QEMU's `session-file`, there in base64. */
  readonly session: Uint8Array;
  /** `dh_uaddr`, 2084 bytes; QEMU's `dh-cert-file`. */
  readonly certificate: Uint8Array;
  /** The owner's secret. */
  readonly keys: TransportKeys;
}

export interface SessionRequest {
  /** The platform's PDH certificate. Verify its chain before: whoever has its private key gets the transport keys. */
  readonly pdh: Uint8Array;
  /** Guest policy, which the platform has to honour. */
  readonly policy: number;
  /**
   * Where random bytes come from.
   * @default randomBytes of node:crypto
   */
  readonly random?: (length: number) => Uint8Array;
}

/** NODBG, NOKS, ES, NOSEND, DOMAIN and SEV, and the lowest version of the API above bit 15. */
const POLICY_DEFINED = 0xffff_003f;
const POLICY_RESERVED = 0xffc0;

const SESSION_LENGTH = 128;
const CURVE = 'secp384r1';

/** The pair that wraps the transport keys, from the secret that both sides share and the session's nonce. */
const wrappingKeys = (secret: Uint8Array, nonce: Uint8Array): { readonly kek: Uint8Array; readonly kik: Uint8Array } =>
  wrappingKeysOf(deriveKey(secret, 'sev-master-secret', nonce));

/** KEK and KIK of a master secret. */
const wrappingKeysOf = (master: Uint8Array): { readonly kek: Uint8Array; readonly kik: Uint8Array } => ({
  kek: deriveKey(master, 'sev-kek'),
  kik: deriveKey(master, 'sev-kik'),
});

/** Makes new transport keys and wraps them for a platform (SEV API, 2.2.5). @throws RangeError if `pdh` is no PDH certificate, or no platform takes the policy */
export const createLaunchSession = ({ pdh, policy, random = randomBytes }: SessionRequest): LaunchSession => {
  if ((policy & POLICY_RESERVED) !== 0)
    throw new RangeError(
      `the policy 0x${policy.toString(16)} has reserved bits; bits of 0x${POLICY_DEFINED.toString(16)} are allowed`,
    );
  const { pubkey } = parseSevCertificate(pdh, 'PDH');
  const ecdh = createECDH(CURVE);
  ecdh.setPrivateKey(privateKey(random));
  const keys = { tek: random(16), tik: random(16) };
  const [nonce, wrapIv] = [random(16), random(16)];
  const { kek, kik } = wrappingKeys(ecdh.computeSecret(pointOf(pubkey)), nonce);
  const wrapTk = counterMode(kek, wrapIv, Buffer.concat([keys.tek, keys.tik]));
  const session = Buffer.concat([nonce, wrapTk, wrapIv, hmac(kik, wrapTk), hmac(keys.tik, u32Bytes(policy))]);
  return { session: Uint8Array.from(session), certificate: createGuestOwnerCertificate(ecdh.getPublicKey()), keys };
};

/**
 * The transport keys in a session blob that `peer` made for the owner of `own`, or null if the blob was altered, is for another
 * key, or was made for another policy. A platform does this; an owner can check a blob with it.
 * @param own the private scalar, 48 bytes big-endian
 * @throws RangeError if `peer` is no PDH certificate
 */
export const openSession = (own: Uint8Array, peer: Uint8Array, policy: number, session: Uint8Array): TransportKeys | null => {
  if (session.length !== SESSION_LENGTH) return null;
  const ecdh = createECDH(CURVE);
  ecdh.setPrivateKey(own);
  const secret = ecdh.computeSecret(pointOf(parseSevCertificate(peer, 'PDH').pubkey));
  const { kek, kik } = wrappingKeys(secret, session.subarray(0, 16));
  const wrapTk = session.subarray(16, 48);
  if (!equal(hmac(kik, wrapTk), session.subarray(64, 96))) return null;
  const plain = counterMode(kek, session.subarray(48, 64), wrapTk);
  const keys = { tek: blob(plain, 0, 16), tik: blob(plain, 16, 16) };
  return equal(hmac(keys.tik, u32Bytes(policy)), session.subarray(96)) ? keys : null;
};

const pointOf = (pubkey: Uint8Array): Uint8Array => {
  const point = decodeEcPoint(pubkey);
  if (point === null) throw new RangeError('no point of P-384');
  return point;
};

/** A random scalar below the order of the curve. */
const privateKey = (random: (length: number) => Uint8Array): Uint8Array => {
  const scalar = Uint8Array.from(random(48));
  // The order has its highest bit set, so a number without it is below; that costs one bit of 384.
  scalar[0] = (scalar[0] ?? 0) & 0x7f;
  return scalar;
};
