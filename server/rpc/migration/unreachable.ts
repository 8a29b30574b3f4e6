import { type ConnectionOptions, connect } from 'node:tls';
import { Failure } from '../../kernel/failure.js';
import { openSocket } from './daemon-socket.js';

/** So long a daemon may take to answer a greeting of TLS. */
const PROBE_MS = 2000;

/** What OpenSSL says where the other end answers in the clear. */
const IN_THE_CLEAR = /wrong version number|packet length too long|speaks no HTTP\/2/i;
const NO_PEER = /is no --tls-peer/;
const CERTIFICATE = /certificate|self.signed|altnames|unable to (get|verify)/i;

/** What the daemon that is named answers with. */
export type SpeaksTls = (address: string) => Promise<boolean>;

/** Greets in TLS, and goes: whoever answers in it speaks it, whatever it makes of the greeting. */
const speaksTls: SpeaksTls = (address) =>
  new Promise((resolve) => {
    const anybody: ConnectionOptions = { rejectUnauthorized: false, ALPNProtocols: ['h2'] };
    const socket = connect({ ...anybody, socket: openSocket(address, null, null) });
    const known = (answer: boolean) => (): void => {
      socket.destroy();
      resolve(answer);
    };
    // The server's part of the handshake; that it then wants a certificate makes no difference.
    socket.once('secureConnect', known(true));
    socket.once('error', (error) => known(/alert/i.test(error.message))());
    socket.once('close', known(false));
    socket.setTimeout(PROBE_MS, known(false));
  });

/**
 * Why a daemon cannot be reached, as far as it can be told: it is there, and the two do not speak the same way, or do not trust
 * each other. EACCES: it has been refused for its certificate, by this one.
 * @param tls whether this daemon speaks TLS
 */
export const explained = async (failure: Failure, tls: boolean, speaks: SpeaksTls = speaksTls): Promise<Failure> => {
  const { daemon = '', message = '' } = failure.details;
  if (failure.reason !== 'DAEMON_UNREACHABLE') return failure;
  const because = (errno: 'EACCES' | 'EHOSTUNREACH', reason: string, allowed: string): Failure =>
    new Failure(errno, reason, failure.kernelRef, { ...failure.details, allowed });
  if (tls && NO_PEER.test(message)) return because('EACCES', 'TLS_PEER_NOT_ALLOWED', 'as --tls-peer names it');
  if (tls && IN_THE_CLEAR.test(message))
    return because('EHOSTUNREACH', 'DAEMON_SPEAKS_NO_TLS', 'a daemon with --tls-cert, as this one has');
  if (tls && CERTIFICATE.test(message))
    return because(
      'EACCES',
      'TLS_CERTIFICATE_REFUSED',
      'a certificate of an authority of --tls-ca, for the name that is dialled',
    );
  if (!tls && (await speaks(daemon)))
    return because('EHOSTUNREACH', 'DAEMON_SPEAKS_TLS', 'a daemon without --tls-cert, as this one, or --tls-cert here too');
  return failure.with({ allowed: 'a daemon that answers' });
};
