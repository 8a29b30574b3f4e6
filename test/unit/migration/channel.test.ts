import { describe, expect, it } from 'vitest';
import { Failure, failed, type Result } from '../../../server/kernel/failure.js';
import { type ChannelRole, createHandshake, type SecureChannel } from '../../../server/migration/channel.js';
import { createIdentity, fingerprint } from '../../../server/migration/identity.js';

const seed = (value: number): Uint8Array => new Uint8Array(32).fill(value);
const SOURCE = createIdentity(seed(1));
const DESTINATION = createIdentity(seed(2));
const STRANGER = createIdentity(seed(3));
const IDENTITIES = { source: SOURCE, destination: DESTINATION } as const;

const must = <T>(result: Result<T>): T => {
  if (failed(result)) throw new Error(result.reason);
  return result;
};

const reasonOf = (result: unknown): string => (result instanceof Failure ? result.reason : 'accepted');

/** One side of an exchange. @param ephemeral number from which its secret is made */
const side = (role: ChannelRole, ephemeral: number, session = 'session') =>
  createHandshake({
    role,
    session,
    identity: IDENTITIES[role],
    ephemeralSeed: seed(ephemeral),
    peers: new Set([fingerprint(SOURCE.publicKey), fingerprint(DESTINATION.publicKey)]),
  });

/** Both ends of a channel. */
const connect = (first = 10): { readonly source: SecureChannel; readonly destination: SecureChannel } => {
  const [source, destination] = [side('source', first), side('destination', first + 1)];
  const here = must(source.heard(destination.hello));
  const there = must(destination.heard(source.hello));
  return { source: must(here.finish(there.proof)), destination: must(there.finish(here.proof)) };
};

const frame = (text: string): Uint8Array => new TextEncoder().encode(text);

describe('a channel between two daemons', () => {
  it('carries frames both ways, and tells who is at the other end', () => {
    const { source, destination } = connect();
    expect(must(destination.open(source.seal(frame('pages'))))).toEqual(Buffer.from('pages'));
    expect(must(source.open(destination.seal(frame('ack'))))).toEqual(Buffer.from('ack'));
    expect(destination.peer).toBe(fingerprint(SOURCE.publicKey));
  });

  it('shows a relay nothing of what it carries', () => {
    const sealed = connect().source.seal(frame('the canary sings'));
    expect(Buffer.from(sealed).includes('canary')).toBe(false);
  });

  it('detects each bit that is changed, and opens nothing afterwards', () => {
    const length = connect().source.seal(frame('page')).length;
    const { source } = connect();
    const sealed = source.seal(frame('page'));
    for (let bit = 0; bit < 8 * length; bit++) {
      const { destination } = connect();
      const changed = sealed.slice();
      changed[bit >>> 3] = (changed[bit >>> 3] ?? 0) ^ (1 << (bit & 7));
      expect(reasonOf(destination.open(changed)), `bit ${bit}`).toMatch(/^FRAME_/);
      expect(reasonOf(destination.open(sealed))).toMatch(/^FRAME_/);
    }
  });

  it.each([
    { what: 'left out', order: [1], reason: 'FRAME_OUT_OF_ORDER' },
    { what: 'repeated', order: [0, 0], reason: 'FRAME_OUT_OF_ORDER' },
    { what: 'put in another order', order: [0, 2, 1], reason: 'FRAME_OUT_OF_ORDER' },
  ])('detects a frame that is $what', ({ order, reason }) => {
    const { source, destination } = connect();
    const sealed = ['a', 'b', 'c'].map((text) => source.seal(frame(text)));
    const results = order.map((index) => reasonOf(destination.open(sealed[index] ?? new Uint8Array(0))));
    expect(results.find((result) => result !== 'accepted')).toBe(reason);
  });

  it('detects a frame cut short, a frame of an older exchange of the same session, and its own frame sent back', () => {
    const old = connect(20).source.seal(frame('a'));
    expect(reasonOf(connect().destination.open(old))).toBe('FRAME_NOT_AUTHENTIC');
    const { source } = connect();
    expect(reasonOf(source.open(source.seal(frame('a'))))).toBe('FRAME_NOT_AUTHENTIC');
    expect(reasonOf(connect().destination.open(old.subarray(0, 10)))).toBe('FRAME_TOO_SHORT');
  });
});

describe('the exchange of keys', () => {
  it('refuses a daemon that is not on the list', () => {
    const peers = new Set([fingerprint(SOURCE.publicKey)]);
    const stranger = createHandshake({
      role: 'source',
      session: 'session',
      identity: STRANGER,
      ephemeralSeed: seed(30),
      peers,
    });
    expect(reasonOf(side('destination', 31).heard(stranger.hello))).toBe('PEER_NOT_ALLOWED');
  });

  it('refuses a man in the middle who puts his own key beside the identity of another', () => {
    const [source, destination] = [side('source', 40), side('destination', 41)];
    const middle = Buffer.concat([createHandshakeKey(42), SOURCE.publicKey]);
    const here = must(source.heard(destination.hello));
    const there = must(destination.heard(middle));
    expect(reasonOf(there.finish(here.proof))).toBe('PEER_PROOF_WRONG');
  });

  it('refuses the proof of another session, and one that is sent back', () => {
    const [source, destination] = [side('source', 50, 'one'), side('destination', 51, 'other')];
    const here = must(source.heard(destination.hello));
    const there = must(destination.heard(source.hello));
    expect(reasonOf(there.finish(here.proof))).toBe('PEER_PROOF_WRONG');
    expect(reasonOf(here.finish(here.proof))).toBe('PEER_PROOF_WRONG');
  });

  it('refuses a key that gives no secret, and a hello of the wrong length', () => {
    const zero = Buffer.concat([new Uint8Array(32), SOURCE.publicKey]);
    expect(reasonOf(side('destination', 60).heard(zero))).toBe('PEER_KEY_UNUSABLE');
    expect(reasonOf(side('destination', 61).heard(zero.subarray(1)))).toBe('HELLO_LENGTH');
  });
});

/** An ephemeral public key. */
function createHandshakeKey(value: number): Uint8Array {
  return side('source', value).hello.subarray(0, 32);
}
