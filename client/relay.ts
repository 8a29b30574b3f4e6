import { setTimeout as delay } from 'node:timers/promises';
import { ExchangeRequest, MigrationHalf } from '../gen/messages.js';
import { MigrationService } from '../gen/services.js';
import { KvmError } from './kvm-error.js';
import type { CallingObject } from './syscall.js';
import type { ClientMethod, Duplex } from './transport.js';

/** Milliseconds before a stream that broke is opened again: the first time, and at most. */
const BACKOFF_MS = 100;
const BACKOFF_MS_MAX = 2_000;
/** Tag of the field `sealed`, with which an ExchangeRequest and an ExchangeResponse begin that carry a frame. */
const SEALED = (4 << 3) | 2;

/** What to carry. */
export interface RelayOptions {
  /** Number of a session that both hosts have. */
  readonly session: string;
  /** The host that has the guest, for example a process of it. */
  readonly source: CallingObject;
  /** The one that is to have it. */
  readonly destination: CallingObject;
  /** Streams of the session. @default 1 */
  readonly streams?: number;
  /** Stops carrying. */
  readonly signal?: AbortSignal;
}

/**
 * Exchange without its codecs. What one daemon answers is what the other one is to be told: the messages of both directions
 * have the same fields under the same numbers, so that they pass as they are.
 */
const EXCHANGE: ClientMethod<Uint8Array, Buffer> = {
  path: MigrationService.exchange.path,
  requestSerialize: (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length),
  responseDeserialize: (bytes) => bytes,
  responseTypeUrl: MigrationService.exchange.responseTypeUrl,
};

type Stream = Duplex<Uint8Array, Buffer>;

const attach = async ({ caller }: CallingObject, session: string, half: number, stream: number): Promise<Stream> => {
  const duplex = caller.duplex(EXCHANGE);
  await duplex.send(ExchangeRequest.encode({ attach: { session, half, stream } }).finish());
  return duplex;
};

/** What a stream has come to; thrown KvmErrors are in it. */
interface Carried {
  /** The daemons have proved themselves to each other, and frames have passed. */
  frames: boolean;
}

const pipe = async (from: Stream, to: Stream, carried: Carried): Promise<void> => {
  for await (const message of from) {
    carried.frames ||= message[0] === SEALED;
    await to.send(message);
  }
};

/** Carries one stream until a daemon ends it. @throws KvmError where it breaks */
const carry = async ({ session, source, destination }: RelayOptions, stream: number, carried: Carried): Promise<void> => {
  const here = await attach(source, session, MigrationHalf.MIGRATION_HALF_SOURCE, stream);
  const there = await attach(destination, session, MigrationHalf.MIGRATION_HALF_DESTINATION, stream);
  const both = [pipe(here, there, carried), pipe(there, here, carried)];
  try {
    await Promise.race(both);
  } finally {
    here.cancel();
    there.cancel();
    await Promise.allSettled(both);
  }
};

/** Carries a stream, and again whenever it breaks, until the session is over. */
const carryOn = async (options: RelayOptions, stream: number): Promise<void> => {
  const { signal } = options;
  const carried: Carried = { frames: false };
  for (let wait = BACKOFF_MS; signal?.aborted !== true; wait = Math.min(2 * wait, BACKOFF_MS_MAX)) {
    try {
      await carry(options, stream, carried);
      return;
    } catch (error) {
      const { errno, reason } = KvmError.from(error);
      // Who is refused at first will be refused again: no such session, or a peer that is not on the list.
      if (errno !== null && !carried.frames) throw error;
      // Another relay has come for it: the two would take it from each other for ever.
      if (reason === 'STREAM_REPLACED') throw error;
    }
    await delay(wait, undefined, { signal }).catch(() => {});
  }
};

/**
 * Carries a migration between two hosts that cannot reach each other: pulls from one and pushes to the other. The daemons prove
 * themselves to each other and seal what they say, so that a relay can neither read nor change it; all it can do is stop.
 * Both must have begun the session: `sendVm` and `receiveVm` without an address; `migrate` with `relay` does it all.
 * Resolves when the session is over on both hosts, or `signal` says so.
 * @throws KvmError where a host refuses: ENOENT, EACCES of a peer that it does not know, or EBUSY (STREAM_REPLACED) where
 * another relay has come for the session
 */
export const relayMigration = async (options: RelayOptions): Promise<void> => {
  const over = new AbortController();
  const { signal, streams = 1 } = options;
  const stop = signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]);
  const callers = {
    source: { caller: options.source.caller.with({ signal: stop }) },
    destination: { caller: options.destination.caller.with({ signal: stop }) },
  };
  const numbers = Array.from({ length: streams }, (_, index) => index);
  const all = numbers.map((index) => carryOn({ ...options, ...callers, signal: stop }, index));
  try {
    // The first stream ends with the session; the others may be refused for want of need.
    await Promise.race([all[0], firstFailure(all)]);
  } finally {
    over.abort();
    await Promise.allSettled(all);
  }
};

/** Settles only where one of them fails. */
const firstFailure = (all: readonly Promise<void>[]): Promise<never> =>
  new Promise((_resolve, reject) => {
    for (const each of all) each.catch(reject);
  });
