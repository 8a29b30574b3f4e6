import {
  type FrameData,
  type FrameDataInit,
  type MigrationFrame as FrameMessage,
  MigrationFrame,
} from '../../../gen/messages.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import { WANTED_MAX } from '../../migration/destination.js';
import type { FrameRun } from '../../migration/guest.js';
import { type Frame, type Message, STANDINGS, type Standing } from '../../migration/message.js';
import { OWED_RUNS_MAX } from '../../migration/page-sender.js';
import { DETAIL_MAX } from '../../migration/reason.js';
import { guestDescriptionMessage, guestDescriptionOf } from './description-codec.js';
import { encodePagesFrame, GFN_END, pageBatchOf } from './page-codec.js';
import { ID_MAX } from './session-id.js';

/** Frames as bytes, by the contract's MigrationFrame. What comes from a peer is taken for hostile: it is refused, never thrown. */

/** Characters of a reason. */
const REASON_MAX = 256;

const wrong = (field: string, given: string, allowed: string): Failure =>
  new Failure('EINVAL', 'FRAME_MALFORMED', 'simkvmd', { field, given, allowed });

const messageInit = (message: Exclude<Message, { readonly kind: 'pages' }>): FrameDataInit => {
  switch (message.kind) {
    case 'offer':
      return { offer: guestDescriptionMessage(message.guest) };
    case 'accept':
      return { accept: message.target };
    case 'start':
      return { start: message.opening };
    case 'state':
      return { state: message.state };
    case 'prepare':
      return { prepare: {} };
    case 'prepared':
      return { prepared: {} };
    case 'commit':
      return { commit: {} };
    case 'committed':
      return { committed: {} };
    case 'abort':
      return { abort: message.reason, detail: message.detail };
    case 'aborted':
      return { aborted: message.reason, detail: message.detail };
    case 'owed':
      return { owed: { runs: message.runs } };
    case 'wanted':
      return { wanted: { gfns: message.gfns } };
    case 'complete':
      return { complete: {} };
  }
};

/** The pieces of a frame, one behind the other; the pages of a guest are a piece of their own, the last, which is not copied. */
export const encodeFrame = (frame: Frame): Uint8Array[] => {
  const { session, boot } = frame;
  const encode = (rest: Parameters<typeof MigrationFrame.encode>[0]): Uint8Array[] => [
    MigrationFrame.encode({ session, boot, ...rest }).finish(),
  ];
  switch (frame.kind) {
    case 'ask':
      return encode({ ask: { version: frame.version, number: frame.number } });
    case 'standing': {
      const { answers, standing, ledger, received } = frame;
      return encode({ standing: { answers, standing, ledger, received } });
    }
    case 'ack':
      return encode({ ack: { received: frame.received } });
    case 'settled':
      return encode({ settled: {} });
    case 'data': {
      const { sequence, message } = frame;
      if (message.kind === 'pages') return encodePagesFrame({ session, boot, sequence }, message.batch);
      return encode({ data: { sequence, ...messageInit(message) } });
    }
  }
};

/** Why a migration was given up, in a word. */
const reasonOf = (kind: 'abort' | 'aborted', reason: string, detail: string): Result<Message> => {
  if (reason.length > REASON_MAX) return wrong(`data.${kind}`, `${reason.length} characters`, `at most ${REASON_MAX}`);
  return detail.length <= DETAIL_MAX
    ? { kind, reason, detail }
    : wrong('data.detail', `${detail.length} characters`, `at most ${DETAIL_MAX}`);
};

/** A number that counts messages or questions. */
const counter = (field: string, value: bigint): Result<number> =>
  value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : wrong(field, String(value), 'below 2^53');

/** Frames that follow one another, and end where guest memory ends at the latest. */
const runsOf = (runs: readonly { readonly first: bigint; readonly count: bigint }[]): Result<FrameRun[]> => {
  if (runs.length > OWED_RUNS_MAX) return wrong('data.owed.runs', `${runs.length} runs`, `at most ${OWED_RUNS_MAX}`);
  for (const { first, count } of runs)
    if (count < 1n || first + count > GFN_END) return wrong('data.owed.runs', `${count} frames from ${first}`, 'below 2^40');
  return runs.map(({ first, count }) => ({ first: Number(first), count: Number(count) }));
};

const wantedOf = (gfns: readonly bigint[]): Result<number[]> => {
  if (gfns.length > WANTED_MAX) return wrong('data.wanted.gfns', `${gfns.length} frames`, `at most ${WANTED_MAX}`);
  for (const gfn of gfns) if (gfn >= GFN_END) return wrong('data.wanted.gfns', String(gfn), 'below 2^40');
  return gfns.map(Number);
};

const isStanding = (text: string): text is Standing => STANDINGS.some((name) => name === text);

const messageOf = (data: FrameData): Result<Message> => {
  if (data.pages !== null) {
    const batch = pageBatchOf(data.pages);
    return failed(batch) ? batch : { kind: 'pages', batch };
  }
  if (data.offer !== null) {
    const guest = guestDescriptionOf(data.offer);
    return failed(guest) ? guest : { kind: 'offer', guest };
  }
  if (data.accept !== null) return { kind: 'accept', target: new Uint8Array(data.accept) };
  if (data.start !== null) return { kind: 'start', opening: new Uint8Array(data.start) };
  if (data.state !== null) return { kind: 'state', state: new Uint8Array(data.state) };
  if (data.prepare !== null) return { kind: 'prepare' };
  if (data.prepared !== null) return { kind: 'prepared' };
  if (data.commit !== null) return { kind: 'commit' };
  if (data.committed !== null) return { kind: 'committed' };
  if (data.abort !== null) return reasonOf('abort', data.abort, data.detail);
  if (data.aborted !== null) return reasonOf('aborted', data.aborted, data.detail);
  if (data.owed !== null) {
    const runs = runsOf(data.owed.runs);
    return failed(runs) ? runs : { kind: 'owed', runs };
  }
  if (data.wanted !== null) {
    const gfns = wantedOf(data.wanted.gfns);
    return failed(gfns) ? gfns : { kind: 'wanted', gfns };
  }
  if (data.complete !== null) return { kind: 'complete' };
  return wrong('data.message', 'nothing', 'a message that this version knows');
};

const frameOf = (message: FrameMessage): Result<Frame> => {
  const { session, boot, ask, standing, data, ack, settled } = message;
  if (session.length > ID_MAX) return wrong('session', `${session.length} characters`, `at most ${ID_MAX}`);
  if (boot.length > ID_MAX) return wrong('boot', `${boot.length} characters`, `at most ${ID_MAX}`);
  if (data !== null) {
    const sequence = counter('data.sequence', data.sequence);
    if (failed(sequence)) return sequence;
    const content = messageOf(data);
    return failed(content) ? content : { session, boot, kind: 'data', sequence, message: content };
  }
  if (ack !== null) {
    const received = counter('ack.received', ack.received);
    return failed(received) ? received : { session, boot, kind: 'ack', received };
  }
  if (ask !== null) {
    const number = counter('ask.number', ask.number);
    return failed(number) ? number : { session, boot, kind: 'ask', version: ask.version, number };
  }
  if (standing !== null) return standingOf(session, boot, standing);
  return settled === null ? wrong('frame', 'nothing', 'one of its fields') : { session, boot, kind: 'settled' };
};

const standingOf = (session: string, boot: string, message: NonNullable<FrameMessage['standing']>): Result<Frame> => {
  const { standing, ledger } = message;
  const answers = counter('standing.answers', message.answers);
  if (failed(answers)) return answers;
  const received = counter('standing.received', message.received);
  if (failed(received)) return received;
  if (!isStanding(standing)) return wrong('standing.standing', standing, STANDINGS.join(', '));
  if (ledger !== null && ledger.length > ID_MAX)
    return wrong('standing.ledger', `${ledger.length} characters`, `at most ${ID_MAX}`);
  return { session, boot, kind: 'standing', answers, standing, ledger, received };
};

/** EINVAL, with the field that is wrong. Pages of the frame are views of `bytes`; all else of it is its own. */
export const decodeFrame = (bytes: Uint8Array): Result<Frame> => {
  let message: FrameMessage;
  try {
    message = MigrationFrame.decode(bytes);
  } catch (error) {
    return wrong('frame', `${bytes.length} bytes (${error instanceof Error ? error.message : error})`, 'a MigrationFrame');
  }
  return frameOf(message);
};
