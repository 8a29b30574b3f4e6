import type { Entropy } from '../entropy.js';
import { addSignature, createCertificate, onlySignatureOf, type Signer, USAGE } from './certificates.js';
import { deriveKey } from './kdf.js';
import { type KeyPair, keyPair, keyPairFromSeed } from './p384.js';
import type { ApiVersion } from './policy.js';

/**
 * A key pair and its certificate. Both are made when first asked for: elliptic-curve operations are slow, and most
 * simulated hosts never show their identity to anybody.
 */
export interface Endorsed {
  readonly key: () => KeyPair;
  readonly certificate: () => Uint8Array;
}

/** The authority over a platform: its own OCA, whose key it holds, or an external one. */
export type Owner =
  | ({ readonly kind: 'self' } & Endorsed)
  | { readonly kind: 'external'; readonly certificate: () => Uint8Array };

/** The keys that a platform owner controls; they survive SHUTDOWN and are deleted by PLATFORM_RESET. */
export interface PlatformIdentity {
  readonly owner: Owner;
  readonly pek: Endorsed;
  readonly pdh: Endorsed;
}

/** Length of the seed from which a scalar of P-384 is reduced. */
export const SCALAR_SEED_LENGTH = 56;

const once = <Value>(make: () => Value): (() => Value) => {
  let made: { readonly value: Value } | null = null;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
};

/**
 * The chip's endorsement key, derived from a secret fused into the chip: the same chip always has the same. The
 * derivation of real parts is not public; this one is a model (sev-firmware.md 3.3).
 */
export function createChipEndorsementKey(chipSecret: Uint8Array, api: ApiVersion): Endorsed {
  const key = once(() => keyPairFromSeed(deriveKey(chipSecret, 'sev-chip-endorsement-key', SCALAR_SEED_LENGTH)));
  return { key, certificate: once(() => createCertificate(USAGE.CEK, key().publicKey, api, [])) };
}

/** Makes identities. `entropy` serves each new key once, so that no key depends on whether another was used. */
export class IdentityFactory {
  private made = 0;

  constructor(
    private readonly cek: Endorsed,
    private readonly api: () => ApiVersion,
    private readonly entropy: Entropy,
  ) {}

  /** How many keys have been made. */
  get keysMade(): number {
    return this.made;
  }

  /** Keys up to this number have been made before the last reset of the chip. */
  resumeAfter(keysMade: number): void {
    this.made = Math.max(this.made, keysMade);
  }

  /** A self-owned identity: new OCA, PEK (signed by OCA and CEK) and PDH (signed by PEK). */
  create(): PlatformIdentity {
    const ownerKey = this.newKey('oca');
    const ocaSigner = (): Signer => ({ usage: USAGE.OCA, key: ownerKey() });
    const oca = { key: ownerKey, certificate: this.certificate(USAGE.OCA, ownerKey, () => [ocaSigner()]) };
    const pekKey = this.newKey('pek');
    const pek = { key: pekKey, certificate: this.certificate(USAGE.PEK, pekKey, () => [ocaSigner(), this.cekSigner()]) };
    return { owner: { kind: 'self', ...oca }, pek, pdh: this.createPdh(pek) };
  }

  /** PDH_GEN: the same identity with a new Diffie-Hellman key. */
  withNewPdh(identity: PlatformIdentity): PlatformIdentity {
    return { ...identity, pdh: this.createPdh(identity.pek) };
  }

  /** PEK_CERT_IMPORT: the platform's PEK as certified by an external owner, endorsed by the chip; and a new PDH. */
  withExternalOwner(ocaCertificate: Uint8Array, pekCertificate: Uint8Array, { key }: Endorsed): PlatformIdentity {
    const pek = { key, certificate: once(() => addSignature(onlySignatureOf(USAGE.OCA, pekCertificate), this.cekSigner())) };
    return { owner: { kind: 'external', certificate: () => ocaCertificate }, pek, pdh: this.createPdh(pek) };
  }

  private createPdh(pek: Endorsed): Endorsed {
    const key = this.newKey('pdh');
    return { key, certificate: this.certificate(USAGE.PDH, key, () => [{ usage: USAGE.PEK, key: pek.key() }]) };
  }

  private cekSigner(): Signer {
    return { usage: USAGE.CEK, key: this.cek.key() };
  }

  private certificate(
    usage: typeof USAGE.OCA | typeof USAGE.PEK | typeof USAGE.PDH,
    key: () => KeyPair,
    signers: () => Signer[],
  ): () => Uint8Array {
    return once(() => createCertificate(usage, key().publicKey, this.api(), signers()));
  }

  private newKey(role: string): () => KeyPair {
    const label = `${role} ${this.made++}`;
    return once(() => keyPairFromSeed(this.entropy.fork(label).bytes(SCALAR_SEED_LENGTH)));
  }
}

/** An identity that was read back from storage. */
export function restoredEndorsed(privateKey: Uint8Array, certificate: Uint8Array): Endorsed {
  return { key: once(() => keyPair(privateKey)), certificate: () => certificate };
}
