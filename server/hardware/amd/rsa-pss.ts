import { constants, createHash, type KeyObject, privateEncrypt, verify } from 'node:crypto';
import type { SignatureHash } from './p384.js';

/** RSASSA-PSS (RFC 8017) with MGF1 on the same hash and a salt as long as it, as all AMD roots use it. */

/**
 * A signature whose salt is derived from the message, so that the same key and message give the same signature.
 * @returns a big-endian number as long as the modulus
 */
export function signPss(hash: SignatureHash, key: KeyObject, message: Uint8Array): Uint8Array {
  const modulusBits = key.asymmetricKeyDetails?.modulusLength;
  if (modulusBits === undefined) throw new Error('not an RSA key');
  const salt = createHash(hash).update('salt').update(message).digest();
  const encoded = encodePss(hash, createHash(hash).update(message).digest(), salt, modulusBits);
  return privateEncrypt({ key, padding: constants.RSA_NO_PADDING }, encoded);
}

export function verifyPss(hash: SignatureHash, key: KeyObject, message: Uint8Array, signature: Uint8Array): boolean {
  const options = { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST };
  return verify(hash, message, options, signature);
}

/** EMSA-PSS-ENCODE (RFC 8017, section 9.1.1) for moduli of whole bytes. */
function encodePss(hash: SignatureHash, digest: Uint8Array, salt: Uint8Array, modulusBits: number): Uint8Array {
  const length = modulusBits / 8;
  const h = createHash(hash).update(new Uint8Array(8)).update(digest).update(salt).digest();
  const block = new Uint8Array(length - h.length - 1);
  block[block.length - salt.length - 1] = 1;
  block.set(salt, block.length - salt.length);
  const mask = mgf1(hash, h, block.length);
  const masked = block.map((byte, index) => byte ^ mask[index]);
  masked[0] &= 0x7f;
  return Buffer.concat([masked, h, Uint8Array.of(0xbc)]);
}

function mgf1(hash: SignatureHash, seed: Uint8Array, length: number): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (let counter = 0, made = 0; made < length; counter++) {
    const index = Uint8Array.of(0, 0, counter >> 8, counter & 0xff);
    const block = createHash(hash).update(seed).update(index).digest();
    blocks.push(block);
    made += block.length;
  }
  return Buffer.concat(blocks).subarray(0, length);
}
