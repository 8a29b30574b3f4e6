import { randomBytes } from 'node:crypto';
import type { ConnectionOptions } from 'node:tls';
import type { ChannelCredentials } from '@grpc/grpc-js';
import { createIdentity, type Identity, RAW_KEY_BYTES } from '../../migration/identity.js';
import type { Ledger } from '../../migration/ledger.js';
import type { HeapRoom } from './heap-room.js';

/** Mutual TLS of a daemon's calls to others. */
export interface DaemonTls {
  readonly channel: ChannelCredentials;
  /** The same for a socket. */
  readonly socket: ConnectionOptions;
}

/** What a daemon is to the others with which it exchanges guests. */
export interface MigrationHost {
  /** What it proves itself with. */
  readonly identity: Identity;
  /** Where it keeps what has to survive it. */
  readonly ledger: Ledger;
  /** Fingerprints of the daemons that may be at the other end; AllowPeer adds to them. */
  readonly peers: Set<string>;
  /**
   * Where others can dial it, `host:port`; a host of zeros stands for the address that a call of this daemon comes from. Null:
   * nowhere, as long as it does not listen.
   */
  advertise: string | null;
  /** With which it dials others; null: in the clear, and what is said is sealed all the same. */
  readonly tls: DaemonTls | null;
  /** SHA-256 of the certificates of those that may call Exchange, hex; null: any that the listener lets in. */
  readonly tlsPeers: ReadonlySet<string> | null;
  /** DANGEROUS, for tests and benches: frames go as they are, and nobody proves anything. Both sides must agree. */
  readonly unsealed: boolean;
  /** Null where V8 is not this host's to set up. */
  readonly heapRoom: HeapRoom | null;
  /** What is to be done before the daemon ends, where it is asked to; none takes long. */
  readonly farewells: (() => Promise<void>)[];
}

/** A ledger that ends with the daemon, and says so: what it does not know proves nothing. */
const createVolatileLedger = (): Ledger => {
  const committed = new Set<string>();
  return {
    id: null,
    records: [],
    unwritable: null,
    record: ({ kind, session }) => {
      if (kind === 'committed') committed.add(session);
      return null;
    },
    hasCommitted: (session) => committed.has(session),
    forget: (session) => void committed.delete(session),
  };
};

/**
 * A daemon without a place to keep anything: another one with each start.
 * @param seed of its identity, 32 bytes
 */
export const createVolatileMigrationHost = (seed: Uint8Array = randomBytes(RAW_KEY_BYTES)): MigrationHost => ({
  identity: createIdentity(seed),
  ledger: createVolatileLedger(),
  peers: new Set(),
  advertise: null,
  tls: null,
  tlsPeers: null,
  unsealed: false,
  heapRoom: null,
  farewells: [],
});
