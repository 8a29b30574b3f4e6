import { type ClientHttp2Session, type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from 'node:http2';
import { isIP } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, WINDOW_BYTES } from './limits.js';
import type { ClientTls } from './tls.js';

/** A connection, and how many calls are under way over it: only they keep the program running. */
interface Link {
  readonly session: ClientHttp2Session;
  calls: number;
}

/** One HTTP/2 connection at a time to a host: made when it is needed, and anew after it was lost. */
export class Connection {
  private readonly authority: string;
  private link: Link | null = null;

  /** @param target `host:port` */
  constructor(
    private readonly target: string,
    private readonly tls: ClientTls | null,
  ) {
    this.authority = `${tls === null ? 'http' : 'https'}://${target}`;
  }

  /** @returns whether a host answers there within `timeoutMs` */
  open(timeoutMs: number): Promise<boolean> {
    const { session } = this.live();
    session.ref();
    return new Promise((resolve) => {
      const timer = setTimeout(() => session.destroy(), timeoutMs);
      const end = (answers: boolean): void => {
        clearTimeout(timer);
        session.unref();
        resolve(answers);
      };
      // Only then has a host with TLS taken the certificate.
      session.once('remoteSettings', () => end(true));
      session.once('close', () => end(false));
    });
  }

  /**
   * Begins a request, which waits until there is a connection.
   * @throws Error if a header is none
   */
  request(path: string, headers: Readonly<Record<string, string>>): ClientHttp2Stream {
    const all: OutgoingHttpHeaders = {
      ':method': 'POST',
      ':path': path,
      ':scheme': this.tls === null ? 'http' : 'https',
      ':authority': this.target,
      te: 'trailers',
      'content-type': 'application/grpc',
      ...headers,
    };
    const link = this.live();
    const stream = link.session.request(all);
    if (link.calls++ === 0) link.session.ref();
    stream.once('close', () => {
      if (--link.calls === 0) link.session.unref();
    });
    return stream;
  }

  /** Calls that are under way come to their end. */
  close(): void {
    this.link?.session.close();
  }

  private live(): Link {
    const { link } = this;
    if (link !== null && !link.session.closed && !link.session.destroyed) return link;
    this.link = { session: this.connect(), calls: 0 };
    return this.link;
  }

  private connect(): ClientHttp2Session {
    const session = connect(this.authority, {
      settings: { enablePush: false, initialWindowSize: WINDOW_BYTES },
      // Node would count what thousands of calls need at once, and refuse.
      maxSessionMemory: Number.MAX_SAFE_INTEGER,
      ...(this.tls === null ? {} : { createConnection: securely(this.tls) }),
    });
    session.once('connect', () => session.setLocalWindowSize(WINDOW_BYTES));
    // Every stream of it fails, and says so.
    session.on('error', () => {});
    session.unref();
    keepAlive(session);
    return session;
  }
}

/** TLS, with a server name only where there is one: RFC 6066 has none that is an address. */
const securely =
  ({ ca, cert, key }: ClientTls) =>
  ({ hostname, port }: URL): TLSSocket => {
    const host = hostname.replace(/^\[|\]$/g, '');
    const servername = isIP(host) === 0 ? host : '';
    return connectTls({
      host,
      port: Number(port),
      servername,
      ALPNProtocols: ['h2'],
      ca: pem(ca),
      cert: pem(cert),
      key: pem(key),
    });
  };

const pem = (text: string | Uint8Array): string | Buffer => (typeof text === 'string' ? text : Buffer.from(text));

/** Finds out that the other end has gone without a word: the streams end, as they do when it says so. */
const keepAlive = (session: ClientHttp2Session): void => {
  const timer = setInterval(() => {
    // Given up in this very turn of a loop that was held up: `close` is still to come, and a ping would throw.
    if (session.destroyed) return;
    const giveUp = setTimeout(() => session.destroy(), KEEPALIVE_TIMEOUT_MS).unref();
    session.ping(() => clearTimeout(giveUp));
  }, KEEPALIVE_MS).unref();
  session.once('close', () => clearInterval(timer));
};
