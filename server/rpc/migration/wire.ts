import type { Failure } from '../../kernel/failure.js';

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
  write(message: Buffer, sent?: () => void): boolean;
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

type Allocate = (bytes: number) => Buffer;

const lengthBytes = (length: number): number =>
  length < LOW_BITS ? 1 : length < LOW_BITS ** 2 ? 2 : length < LOW_BITS ** 3 ? 3 : 4;

/** Tag and length of a field of fewer than 2^28 bytes, with room for it behind. */
const withHead = (tag: number, length: number, allocate: Allocate): { readonly message: Buffer; readonly start: number } => {
  const bytes = lengthBytes(length);
  const start = 1 + bytes;
  const message = allocate(start + length);
  message[0] = tag;
  for (let byte = 0; byte < bytes; byte++)
    message[1 + byte] = ((length >>> (7 * byte)) & 0x7f) | (byte < bytes - 1 ? LOW_BITS : 0);
  return { message, start };
};

/** ExchangeRequest and ExchangeResponse have the same fields for what both sides say. */
export const encodeExchange = (kind: 'hello' | 'proof', bytes: Uint8Array): Buffer => {
  const { message, start } = withHead(TAG[kind], bytes.length, Buffer.allocUnsafe);
  message.set(bytes, start);
  return message;
};

/** What a message with a `sealed` of so many bytes has in front of them. */
export const sealedHeadBytes = (length: number): number => 1 + lengthBytes(length);

/** A message with a `sealed` of so many bytes, which `fill` writes where they belong: they are not copied again. */
export const encodeSealed = (length: number, allocate: Allocate, fill: (message: Buffer, start: number) => void): Buffer => {
  const { message, start } = withHead(TAG.sealed, length, allocate);
  fill(message, start);
  return message;
};

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
