import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as der from '../server/hardware/amd/snp/der.js';

/** An authority for one test, and what it vouches for. P-256, X.509 version 3 (RFC 5280). */

const OID = {
  COMMON_NAME: '2.5.4.3',
  BASIC_CONSTRAINTS: '2.5.29.19',
  SUBJECT_ALT_NAME: '2.5.29.17',
  ECDSA_WITH_SHA256: '1.2.840.10045.4.3.2',
} as const;
/** [7] iPAddress and [2] dNSName of GeneralName, both implicit. */
const [IP_ADDRESS, DNS_NAME] = [0x87, 0x82];

const name = (common: string): Uint8Array =>
  der.sequence(der.set(der.sequence(der.oid(OID.COMMON_NAME), der.utf8String(common))));

const generalName = (tag: number, bytes: Uint8Array): Uint8Array => Buffer.concat([Uint8Array.of(tag, bytes.length), bytes]);

const EXTENSIONS = {
  authority: der.sequence(der.oid(OID.BASIC_CONSTRAINTS), der.octetString(der.sequence(der.isTrue()))),
  loopback: der.sequence(
    der.oid(OID.SUBJECT_ALT_NAME),
    der.octetString(
      der.sequence(generalName(IP_ADDRESS, Uint8Array.of(127, 0, 0, 1)), generalName(DNS_NAME, Buffer.from('localhost'))),
    ),
  ),
} as const;

interface Issued {
  readonly key: KeyObject;
  /** DER. */
  readonly certificate: Uint8Array;
}

const issue = (subject: string, issuer: string, extension: Uint8Array, signer: KeyObject | null): Issued => {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const algorithm = der.sequence(der.oid(OID.ECDSA_WITH_SHA256));
  const serial = Uint8Array.of(1, ...randomBytes(8));
  const tbs = der.sequence(
    der.explicit(0, der.integer(2)),
    der.integer(serial),
    algorithm,
    name(issuer),
    der.sequence(der.utcTime('200101000000Z'), der.utcTime('491231235959Z')),
    name(subject),
    publicKey.export({ format: 'der', type: 'spki' }),
    der.explicit(3, der.sequence(extension)),
  );
  const signature = sign('sha256', tbs, signer ?? privateKey);
  return { key: privateKey, certificate: der.sequence(tbs, algorithm, der.bitString(signature)) };
};

const pem = (certificate: Uint8Array): string => {
  const lines =
    Buffer.from(certificate)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n');
};

/** Files of somebody that an authority vouches for, on the loopback interface. */
export interface Certified {
  /** Paths, PEM. */
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
  /** SHA-256 of the certificate, 64 hex digits. */
  readonly fingerprint: string;
  /** Options of `simkvmd`. */
  readonly args: readonly string[];
}

/** An authority whose files are gone at the end of the block. */
export class Authority implements Disposable {
  private readonly directory = mkdtempSync(join(tmpdir(), 'simkvm-tls-'));
  private readonly root = issue('simkvm test authority', 'simkvm test authority', EXTENSIONS.authority, null);

  /** @param subject a file name too */
  certify(subject: string): Certified {
    const { key, certificate } = issue(subject, 'simkvm test authority', EXTENSIONS.loopback, this.root.key);
    const files = {
      cert: this.write(`${subject}.pem`, pem(certificate)),
      key: this.write(`${subject}.key`, key.export({ format: 'pem', type: 'pkcs8' }).toString()),
      ca: this.write('ca.pem', pem(this.root.certificate)),
    };
    const fingerprint = createHash('sha256').update(certificate).digest('hex');
    return { ...files, fingerprint, args: ['--tls-cert', files.cert, '--tls-key', files.key, '--tls-ca', files.ca] };
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true });
  }

  private write(file: string, text: string): string {
    const path = join(this.directory, file);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  }
}
