import { readFileSync } from 'node:fs';
import { type ConnectionOptions, checkServerIdentity, type PeerCertificate } from 'node:tls';
import { ChannelCredentials, ServerCredentials } from '@grpc/grpc-js';
import type { DaemonTls } from './rpc/migration/migration-host.js';

/** Files of `--tls-cert`, `--tls-key` and `--tls-ca`, PEM, and what `--tls-peer` says. */
export interface TlsOptions {
  /** The daemon's own certificate, and those between it and the authority. */
  readonly cert: string;
  readonly key: string;
  /** Authorities that vouch for whoever calls, and for the daemons that are called. */
  readonly ca: string;
  /**
   * Certificates of the daemons that guests are exchanged with: SHA-256 in hex. None: whoever has a certificate of the
   * authorities; of a daemon that is called it must name the host then.
   */
  readonly peers: readonly string[];
}

/** Mutual TLS of a daemon: for all that call it, and for its own calls to others. */
export interface Tls {
  readonly server: ServerCredentials;
  readonly client: DaemonTls;
  /** SHA-256 of the certificates of those that guests are exchanged with, 64 hex digits; null: any that is valid. */
  readonly peers: ReadonlySet<string> | null;
}

/** SHA-256 of a certificate as `--tls-peer` takes it: 64 hex digits. */
export const certificateFingerprint = ({ fingerprint256 }: PeerCertificate): string =>
  fingerprint256.replaceAll(':', '').toLowerCase();

/** @throws Error that names the file */
const read = (path: string): Buffer => {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new Error(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
};

/**
 * Mutual TLS: whoever calls has to show a certificate of the authorities, and so has every daemon that is called.
 * @throws Error if a file cannot be read, or key and certificate do not belong together
 */
export const loadTls = (options: TlsOptions): Tls => {
  const [cert, key, ca] = [read(options.cert), read(options.key), read(options.ca)];
  const peers = options.peers.length === 0 ? null : new Set(options.peers);
  // A certificate that is known by itself says more than the name in it.
  const check: ConnectionOptions['checkServerIdentity'] = (host, certificate) => {
    if (peers === null) return checkServerIdentity(host, certificate);
    const fingerprint = certificateFingerprint(certificate);
    return peers.has(fingerprint) ? undefined : new Error(`the certificate with SHA-256 ${fingerprint} is no --tls-peer`);
  };
  return {
    server: ServerCredentials.createSsl(ca, [{ private_key: key, cert_chain: cert }], true),
    client: {
      channel: ChannelCredentials.createSsl(ca, key, cert, { checkServerIdentity: check }),
      socket: { ca, cert, key, checkServerIdentity: check },
    },
    peers,
  };
};
