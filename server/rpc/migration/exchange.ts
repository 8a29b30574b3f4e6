import type { ExchangeAttach, ExchangeRequest } from '../../../gen/messages.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import type { ChannelRole } from '../../migration/channel.js';
import type { Frame } from '../../migration/message.js';
import { answerForUnknown } from '../../migration/sessions.js';
import type { BidiCall, BidiListener } from '../streams.js';
import { dialable } from './address.js';
import { HALF_OF } from './daemon-client.js';
import { HANDSHAKE_MS, PeerStream, type StreamOwner } from './peer-stream.js';
import { STREAMS_MAX } from './session.js';
import { checkSessionId } from './session-id.js';
import type { Sessions } from './sessions.js';
import { exchangeMessageOf, type Wire } from './wire.js';

/** Callers who have not proved themselves yet. */
const STRANGERS_MAX = 256;

const ROLES = ['source', 'destination'] as const;

const wrong = (field: string, given: string, allowed: string): Failure =>
  new Failure('EINVAL', 'ATTACH_INVALID', 'simkvmd', { field, given, allowed });

/** The half that is called. */
const calledRole = ({ session, half, stream }: ExchangeAttach): Result<ChannelRole> => {
  const refused = checkSessionId(session);
  if (refused !== null) return refused;
  if (stream >= STREAMS_MAX) return wrong('attach.stream', String(stream), `below ${STREAMS_MAX}`);
  return ROLES.find((role) => HALF_OF[role] === half) ?? wrong('attach.half', String(half), 'source or destination');
};

/**
 * Answers for a session that this daemon does not have: to whoever has proved that it is one of the daemons that it exchanges
 * guests with, by its records.
 */
class Unknown implements StreamOwner {
  constructor(
    private readonly sessions: Sessions,
    private readonly session: string,
  ) {}

  opened(): null {
    return null;
  }

  received(stream: PeerStream, frame: Frame): void {
    if (frame.session !== this.session) {
      stream.end(new Failure('EACCES', 'FRAME_OF_OTHER_SESSION', 'simkvmd', { field: 'session', given: frame.session }));
      return;
    }
    const { bootId: boot, migration } = this.sessions.host;
    const answer = answerForUnknown({ boot, ledger: migration.ledger }, frame);
    if (answer !== null) stream.send(answer);
  }

  violated(): void {}
  drained(): void {}
  ended(): void {}
}

/** The called side of Exchange, for every caller of one daemon. */
export class Exchange {
  private strangers = 0;

  constructor(private readonly sessions: Sessions) {}

  /** A caller has come; what it says first decides which session it is about. */
  accept(call: BidiCall): BidiListener<ExchangeRequest> {
    const refused = this.whyRefused(call);
    if (refused !== null) {
      call.end(refused);
      return { received: () => {}, drained: () => {}, ended: () => {} };
    }
    let stream: PeerStream | null = null;
    const wire: Wire = { write: call.write, end: call.end };
    const leave = this.countStranger(() => call.end(tooSlow()));
    return {
      received: (request) => {
        if (stream !== null) {
          stream.received(exchangeMessageOf(request));
          if (stream.isOpen) leave();
          return;
        }
        const attached = request.attach === null ? notAttached() : this.attach(request.attach, call.peer, wire);
        if (!failed(attached)) stream = attached;
        else call.end(attached);
      },
      drained: () => stream?.drained(),
      ended: () => {
        leave();
        stream?.ended(null);
      },
    };
  }

  private attach(attach: ExchangeAttach, peer: string, wire: Wire): Result<PeerStream> {
    const role = calledRole(attach);
    if (failed(role)) return role;
    const { session: id, stream: index, caller_address } = attach;
    const dialBack = caller_address === '' ? null : dialable('attach.caller_address', caller_address, peer);
    if (failed(dialBack)) return dialBack;
    const { sessions } = this;
    const known = sessions.get(id);
    const host = sessions.host.migration;
    if (known === undefined || known.half.role !== role)
      return new PeerStream({ role, session: id, index, host, wire, owner: new Unknown(sessions, id) });
    const owner: StreamOwner = {
      opened: (stream) => {
        const refused = known.opened(stream);
        // Only from who has proved itself.
        if (refused === null && dialBack !== null) known.dialBack = sessions.dialling(dialBack);
        return refused;
      },
      received: (stream, frame) => known.received(stream, frame),
      violated: (stream, failure) => known.violated(stream, failure),
      drained: () => known.drained(),
      ended: (stream, failure) => known.ended(stream, failure),
    };
    return new PeerStream({ role, session: id, index, host, wire, owner });
  }

  private whyRefused({ certificate }: BidiCall): Failure | null {
    const { tlsPeers } = this.sessions.host.migration;
    const fingerprint = certificate?.fingerprint256.replaceAll(':', '').toLowerCase() ?? 'no certificate';
    if (tlsPeers !== null && !tlsPeers.has(fingerprint))
      return new Failure('EACCES', 'TLS_PEER_NOT_ALLOWED', 'simkvmd', { given: fingerprint, allowed: 'as --tls-peer names it' });
    if (this.strangers < STRANGERS_MAX) return null;
    return new Failure('EAGAIN', 'TOO_MANY_STRANGERS', 'simkvmd', { limit: `${STRANGERS_MAX} callers that prove themselves` });
  }

  /** @returns what ends the caller's being one */
  private countStranger(expired: () => void): () => void {
    this.strangers++;
    let counted = true;
    const leave = (): void => {
      if (!counted) return;
      counted = false;
      clearTimeout(timer);
      this.strangers--;
    };
    const timer = setTimeout(() => {
      leave();
      expired();
    }, HANDSHAKE_MS).unref();
    return leave;
  }
}

const notAttached = (): Failure => wrong('attach', 'another message', 'the first message of a stream');

const tooSlow = (): Failure => new Failure('ETIMEDOUT', 'HANDSHAKE_TIMEOUT', 'simkvmd', { allowed: `${HANDSHAKE_MS} ms` });
