import { createECDH, createHash, createHmac, createPublicKey, type KeyObject, verify } from 'node:crypto';

/** Elliptic-curve operations on P-384: keys from given scalars, deterministic ECDSA (RFC 6979), verification, ECDH. */

/** Bytes of a coordinate or scalar, big-endian everywhere in this file. */
const COORDINATE = 48;
const ORDER = 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n;

export interface PublicKey {
  readonly x: Uint8Array;
  readonly y: Uint8Array;
}

export interface KeyPair {
  /** The scalar, 48 bytes. */
  readonly privateKey: Uint8Array;
  readonly publicKey: PublicKey;
}

export interface Signature {
  readonly r: Uint8Array;
  readonly s: Uint8Array;
}

export type SignatureHash = 'sha256' | 'sha384';

/** A key pair from uniformly random bytes: (seed mod (n - 1)) + 1. 56 bytes make the bias negligible. */
export function keyPairFromSeed(seed: Uint8Array): KeyPair {
  return keyPair(toBytes((toInteger(seed) % (ORDER - 1n)) + 1n));
}

/** The key pair of a scalar between 1 and n - 1. */
export function keyPair(privateKey: Uint8Array): KeyPair {
  return { privateKey, publicKey: multiplyGenerator(privateKey) };
}

/** ECDSA with the nonce of RFC 6979: the same key and message give the same signature. */
export function sign(hash: SignatureHash, privateKey: Uint8Array, message: Uint8Array): Signature {
  const digest = createHash(hash).update(message).digest();
  const z = toInteger(digest);
  const d = toInteger(privateKey);
  for (const nonce of nonces(hash, privateKey, digest)) {
    const k = toInteger(nonce);
    if (k === 0n || k >= ORDER) continue;
    const r = toInteger(multiplyGenerator(nonce).x) % ORDER;
    const s = (inverse(k) * (z + r * d)) % ORDER;
    if (r !== 0n && s !== 0n) return { r: toBytes(r), s: toBytes(s) };
  }
  throw new Error('unreachable: the generator of nonces does not end');
}

/** Whether the signature is this key's; false as well for a key that is no point of the curve. */
export function verifySignature(hash: SignatureHash, key: PublicKey, message: Uint8Array, { r, s }: Signature): boolean {
  const publicKey = importPublicKey(key);
  if (publicKey === null) return false;
  return verify(hash, message, { key: publicKey, dsaEncoding: 'ieee-p1363' }, Buffer.concat([r, s]));
}

/** The X coordinate that two parties share, 48 bytes big-endian, or null if `peer` is no point of the curve. */
export function sharedSecret(privateKey: Uint8Array, peer: PublicKey): Uint8Array | null {
  const ecdh = createECDH('secp384r1');
  ecdh.setPrivateKey(privateKey);
  try {
    return ecdh.computeSecret(Buffer.concat([Uint8Array.of(4), peer.x, peer.y]));
  } catch {
    return null;
  }
}

/** The key as an object of node:crypto, or null if it is no point of the curve. */
export function importPublicKey({ x, y }: PublicKey): KeyObject | null {
  const coordinate = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64url');
  try {
    return createPublicKey({ key: { kty: 'EC', crv: 'P-384', x: coordinate(x), y: coordinate(y) }, format: 'jwk' });
  } catch {
    return null;
  }
}

/** The candidates for k of RFC 6979, section 3.2, for a curve whose order has 384 bits; a digest is at most as long. */
function* nonces(hash: SignatureHash, privateKey: Uint8Array, digest: Uint8Array): Generator<Uint8Array> {
  const length = digest.length;
  const seed = Buffer.concat([privateKey, toBytes(toInteger(digest) % ORDER)]);
  const mac = (key: Uint8Array, ...parts: Uint8Array[]): Uint8Array => {
    const hmac = createHmac(hash, key);
    for (const part of parts) hmac.update(part);
    return hmac.digest();
  };
  let v: Uint8Array = new Uint8Array(length).fill(1);
  let k: Uint8Array = new Uint8Array(length);
  k = mac(k, v, Uint8Array.of(0), seed);
  v = mac(k, v);
  k = mac(k, v, Uint8Array.of(1), seed);
  v = mac(k, v);
  for (;;) {
    const parts: Uint8Array[] = [];
    for (let bytes = 0; bytes < COORDINATE; bytes += length) {
      v = mac(k, v);
      parts.push(v);
    }
    yield Buffer.concat(parts).subarray(0, COORDINATE);
    k = mac(k, v, Uint8Array.of(0));
    v = mac(k, v);
  }
}

function multiplyGenerator(scalar: Uint8Array): PublicKey {
  const ecdh = createECDH('secp384r1');
  ecdh.setPrivateKey(scalar);
  const point = ecdh.getPublicKey();
  return { x: point.subarray(1, 1 + COORDINATE), y: point.subarray(1 + COORDINATE) };
}

/** The inverse modulo the (prime) order, by the extended Euclidean algorithm. */
function inverse(value: bigint): bigint {
  let [a, b, x, y] = [value, ORDER, 1n, 0n];
  while (b !== 0n) {
    const quotient = a / b;
    [a, b] = [b, a % b];
    [x, y] = [y, x - quotient * y];
  }
  return x < 0n ? x + ORDER : x;
}

const toInteger = (bytes: Uint8Array): bigint => BigInt(`0x${Buffer.from(bytes).toString('hex')}`);

const toBytes = (value: bigint): Uint8Array => Buffer.from(value.toString(16).padStart(COORDINATE * 2, '0'), 'hex');
