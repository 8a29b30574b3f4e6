import { createCipheriv, createDecipheriv, createHash, hkdfSync } from 'node:crypto';
import { Failure, failed, type Result } from '../kernel/failure.js';
import { createEphemeral, fingerprint, type Identity, isSignedBy, RAW_KEY_BYTES, SIGNATURE_BYTES } from './identity.js';

/**
 * What makes frames the daemons' own, whoever carries them: an authenticated key exchange (both sign the transcript of a
 * Diffie-Hellman exchange, as in SIGMA), then AES-256-GCM with a counter for each direction. Whatever is changed, left out,
 * repeated, put in another order, sent back or taken from another session is detected at the next frame, and ends the channel.
 * A relay sees lengths and times.
 */

const REF = 'server/migration';
const TAG_BYTES = 16;
const COUNTER_BYTES = 8;
const CIPHER = 'aes-256-gcm';

export type ChannelRole = 'source' | 'destination';

const HELLO_BYTES = 2 * RAW_KEY_BYTES;
/** Bytes that sealing adds to a frame. */
const SEAL_BYTES = COUNTER_BYTES + TAG_BYTES;

export interface ChannelOptions {
  readonly role: ChannelRole;
  /** Number of the migration: a channel of one is none of another. */
  readonly session: string;
  readonly identity: Identity;
  /** 32 bytes from the host's source of entropy, never used before. */
  readonly ephemeralSeed: Uint8Array;
  /** Fingerprints of the daemons that may be at the other end. */
  readonly peers: ReadonlySet<string>;
}

const refuse = (reason: string, details: Record<string, string> = {}): Failure => new Failure('EACCES', reason, REF, details);

/** The nonce of a frame: its number, as 96 bits. */
const nonce = (counter: bigint): Uint8Array => {
  const bytes = new Uint8Array(12);
  new DataView(bytes.buffer).setBigUint64(4, counter);
  return bytes;
};

/** A channel whose ends know each other. One end seals, the other opens, each frame once and in order. */
export class SecureChannel {
  private sent = 0n;
  private received = 0n;
  private broken: Failure | null = null;

  constructor(
    private readonly sendKey: Uint8Array,
    private readonly receiveKey: Uint8Array,
    /** Of the daemon at the other end. */
    readonly peer: string,
  ) {}

  /** Counter, ciphertext, tag. */
  seal(plain: Uint8Array): Uint8Array {
    return Buffer.concat(this.sealPieces([plain]));
  }

  /** The same for a frame in pieces, in pieces that are new. */
  sealPieces(plain: readonly Uint8Array[]): Uint8Array[] {
    const counter = nonce(this.sent++);
    const cipher = createCipheriv(CIPHER, this.sendKey, counter);
    const sealed: Uint8Array[] = [counter.subarray(-COUNTER_BYTES)];
    for (const piece of plain) sealed.push(cipher.update(piece));
    cipher.final();
    sealed.push(cipher.getAuthTag());
    return sealed;
  }

  /** EACCES: not the peer's next frame; nothing is opened any more from then on. */
  open(sealed: Uint8Array): Result<Uint8Array> {
    if (this.broken !== null) return this.broken;
    const opened = this.openNext(sealed);
    if (failed(opened)) this.broken = opened;
    return opened;
  }

  private openNext(sealed: Uint8Array): Result<Uint8Array> {
    if (sealed.length < SEAL_BYTES) return refuse('FRAME_TOO_SHORT', { length: String(sealed.length) });
    const counter = new DataView(sealed.buffer, sealed.byteOffset).getBigUint64(0);
    if (counter !== this.received)
      return refuse('FRAME_OUT_OF_ORDER', { expected: String(this.received), given: String(counter) });
    const end = sealed.length - TAG_BYTES;
    const decipher = createDecipheriv(CIPHER, this.receiveKey, nonce(counter)).setAuthTag(sealed.subarray(end));
    const plain = decipher.update(sealed.subarray(COUNTER_BYTES, end));
    try {
      decipher.final();
    } catch {
      return refuse('FRAME_NOT_AUTHENTIC', { frame: String(counter) });
    }
    this.received++;
    return plain;
  }
}

/** One side of the exchange after it has seen the other's hello. */
export interface ProvenHalf {
  /** To be sent: this side's signature. */
  readonly proof: Uint8Array;
  /** The channel, if the peer's proof is good. EACCES. */
  finish(peerProof: Uint8Array): Result<SecureChannel>;
}

export interface Handshake {
  /** To be sent first, by both sides: the ephemeral key, then the identity. */
  readonly hello: Uint8Array;
  /** EACCES: the peer is none of those that may be at the other end. */
  heard(peerHello: Uint8Array): Result<ProvenHalf>;
}

const lengthOf = (text: string): Uint8Array => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, Buffer.byteLength(text));
  return bytes;
};

/** A session has two daemons: within a host nothing has to be sent. */
export const peerIsThisDaemon = (peer: string): Failure =>
  refuse('PEER_IS_THIS_DAEMON', { peer, allowed: 'another daemon; within one, SendFd passes a VM on' });

const OTHER: Readonly<Record<ChannelRole, ChannelRole>> = { source: 'destination', destination: 'source' };

/** Begins the exchange of keys. Both sides do the same; only their roles differ. */
export const createHandshake = ({ role, session, identity, ephemeralSeed, peers }: ChannelOptions): Handshake => {
  const ephemeral = createEphemeral(ephemeralSeed);
  const hello = Buffer.concat([ephemeral.publicKey, identity.publicKey]);

  const heard = (peerHello: Uint8Array): Result<ProvenHalf> => {
    if (peerHello.length !== HELLO_BYTES) return refuse('HELLO_LENGTH', { given: String(peerHello.length) });
    const peerIdentity = peerHello.subarray(RAW_KEY_BYTES);
    const peer = fingerprint(peerIdentity);
    if (peer === fingerprint(identity.publicKey)) return peerIsThisDaemon(peer);
    if (!peers.has(peer)) return refuse('PEER_NOT_ALLOWED', { peer });
    const secret = ephemeral.agree(peerHello.subarray(0, RAW_KEY_BYTES));
    if (secret === null) return refuse('PEER_KEY_UNUSABLE', { peer });
    const [first, second] = role === 'source' ? [hello, peerHello] : [peerHello, hello];
    const transcript = createHash('sha256').update('simkvm migration 1').update(lengthOf(session)).update(session);
    const digest = transcript.update(first).update(second).digest();
    // Each side signs its role too, so that no proof can be sent back to whom it came from.
    const claim = (who: ChannelRole): Uint8Array => Buffer.concat([Buffer.from(`${who}:`), digest]);
    const key = (who: ChannelRole): Uint8Array => new Uint8Array(hkdfSync('sha256', secret, digest, `from ${who}`, 32));
    return {
      proof: identity.sign(claim(role)),
      finish: (peerProof) =>
        peerProof.length === SIGNATURE_BYTES && isSignedBy(peerIdentity, claim(OTHER[role]), peerProof)
          ? new SecureChannel(key(role), key(OTHER[role]), peer)
          : refuse('PEER_PROOF_WRONG', { peer }),
    };
  };
  return { hello, heard };
};
