import { createHash, type KeyObject } from 'node:crypto';

/** Where a chain of certificates ends. */
export interface Root {
  /** The product whose root AMD publishes, or null for another root, such as a simulated one. */
  readonly amdProduct: string | null;
  /** SHA-256 of its public key (SubjectPublicKeyInfo), in hex. */
  readonly fingerprint: string;
}

/** AMD's published roots, by their fingerprints. From Milan on the SEV and the SEV-SNP chains of a product end in the same key. */
const AMD_ROOTS: Readonly<Record<string, string>> = {
  '3a04f8f1347de206c9206a81148ba4ef0a233b245d43a15dd82de043bb3e4f69': 'Naples',
  '7447ffa21e2b938bfade89f5e9066c00a328813bfc43685605cceabd18da6fde': 'Rome',
  '9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9': 'Milan',
  '429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831': 'Genoa',
  '4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08': 'Turin',
};

/** SHA-256 of a certificate's public key, in hex. */
export const keyFingerprint = ({ publicKey }: { readonly publicKey: KeyObject }): string =>
  createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex');

/** Whose root a certificate is. */
export const rootOf = (certificate: { readonly publicKey: KeyObject }): Root => {
  const fingerprint = keyFingerprint(certificate);
  return { amdProduct: AMD_ROOTS[fingerprint] ?? null, fingerprint };
};
