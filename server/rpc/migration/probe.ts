import { Failure } from '../../kernel/failure.js';
import type { ChannelRole } from '../../migration/channel.js';
import { PROTOCOL_VERSION } from '../../migration/message.js';
import type { Host } from '../call.js';
import { DaemonClient } from './daemon-client.js';
import { PeerStream, type StreamOwner } from './peer-stream.js';
import { newSessionId } from './session-id.js';

/** So long the other daemon may take, all in all. */
const PROBE_MS = 15_000;

const OTHER: Readonly<Record<ChannelRole, ChannelRole>> = { source: 'destination', destination: 'source' };

const silent = (): Failure => new Failure('ETIMEDOUT', 'PEER_SILENT', 'simkvmd', { allowed: `${PROBE_MS} ms` });

/**
 * Whether a migration's stream to another daemon would come about: it is opened for a session that neither has, both prove who
 * they are, and the other one is asked where it stands, which it answers to those only that it knows. So whatever would refuse the
 * stream of a migration refuses this one, in the same words; and nothing comes of it on either side.
 * @param called the half that is called
 */
export const probe = ({ migration, bootId }: Host, address: string, called: ChannelRole): Promise<Failure | null> =>
  new Promise((resolve) => {
    const session = newSessionId();
    const owner: StreamOwner = {
      opened: (stream) => {
        stream.send({ kind: 'ask', session, boot: bootId, version: PROTOCOL_VERSION, number: 1 });
        return null;
      },
      received: (stream) => {
        learn(null);
        stream.end(null);
      },
      violated: (_stream, failure) => learn(failure),
      drained: () => {},
      ended: (_stream, failure) => learn(failure ?? new Failure('EHOSTUNREACH', 'STREAM_ENDED', 'simkvmd')),
    };
    const role = OTHER[called];
    const open = new DaemonClient(migration, address).exchange(session, called, 0, (wire) => {
      return new PeerStream({ role, session, index: 0, host: migration, wire, owner });
    });
    const timer = setTimeout(() => open.end(silent()), PROBE_MS).unref();
    const learn = (failure: Failure | null): void => {
      clearTimeout(timer);
      resolve(failure);
    };
  });
