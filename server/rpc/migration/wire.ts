import type { Failure } from '../../kernel/failure.js';
import { bytesOf, type Pieces } from '../pieces.js';

/** What a message of Exchange says after the first; whoever carries it may have made it up. */
export type ExchangeMessage =
  | { readonly kind: 'hello'; readonly bytes: Uint8Array }
  | { readonly kind: 'proof'; readonly bytes: Uint8Array }
  /** Memory that may be used again as soon as the message has been taken. */
  | { readonly kind: 'sealed'; readonly bytes: Uint8Array }
  /** One of no kind that is known, or a second `attach`. */
  | { readonly kind: 'other' };

/** A stream of Exchange, whichever side has dialled. */
export interface Wire {
  /**
   * Sends a message as the contract encodes it.
   * @param sent called once nobody looks at the message's memory any more
   * @returns false: there is no room for more before `drained`
   */
  write(message: Pieces, sent?: () => void): boolean;
  /** Nothing more is said, and nothing more is heard. @param failure told to the peer where it has dialled */
  end(failure: Failure | null): void;
}

/** What a wire calls. */
export interface WireListener {
  received(message: ExchangeMessage): void;
  drained(): void;
  /** It is over, by the peer or by the network. @param failure what it says; null: it has just ended */
  ended(failure: Failure | null): void;
}

const TAG = { hello: (2 << 3) | 2, proof: (3 << 3) | 2, sealed: (4 << 3) | 2 } as const;
const LOW_BITS = 0x80;

/** Tag and length of a field with so many bytes. */
const fieldHead = (tag: number, length: number): Uint8Array => {
  const head = [tag];
  let rest = length;
  for (; rest >= LOW_BITS; rest >>>= 7) head.push((rest % LOW_BITS) + LOW_BITS);
  head.push(rest);
  return Uint8Array.from(head);
};

/** A message that says one thing. ExchangeRequest and ExchangeResponse have the same fields for what both sides say. */
export const encodeExchange = (kind: keyof typeof TAG, pieces: Pieces): Pieces => [
  fieldHead(TAG[kind], bytesOf(pieces)),
  ...pieces,
];

interface Fields {
  readonly hello: Uint8Array | null;
  readonly proof: Uint8Array | null;
  readonly sealed: Uint8Array | null;
}

export const exchangeMessageOf = ({ hello, proof, sealed }: Fields): ExchangeMessage => {
  if (sealed !== null) return { kind: 'sealed', bytes: sealed };
  if (hello !== null) return { kind: 'hello', bytes: new Uint8Array(hello) };
  return proof === null ? { kind: 'other' } : { kind: 'proof', bytes: new Uint8Array(proof) };
};
