import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

/** A TCP proxy whose connections can be cut. */
export interface CutProxy extends AsyncDisposable {
  /** `127.0.0.1:PORT` */
  readonly target: string;
  /** Where connections go from now on; without it they are closed as soon as they are there. */
  to: string | null;
  /** The next connection is cut when its first answer is on its way: whatever it has asked for has been done. */
  losesAnswer: boolean;
  /** Connections that there have been. */
  readonly connections: number;
  /** The connection of this number, from 1, is cut as soon as its server has said so many bytes. */
  bytesOf(connection: number, bytes: number): void;
  cut(): void;
}

/** HTTP/2: length of 24 bits, type, flags, stream of 32 bits. */
const FRAME_HEAD_BYTES = 9;
const HEADERS = 1;

/** Passes on what a server says of the connection itself, and cuts it with the first answer to a call. */
const untilAnswer = (client: Socket): ((chunk: Buffer) => void) => {
  let heard = Buffer.alloc(0);
  let at = 0;
  return (chunk) => {
    heard = Buffer.concat([heard, chunk]);
    for (; heard.length >= at + FRAME_HEAD_BYTES; at += FRAME_HEAD_BYTES + heard.readUIntBE(at, 3))
      if (heard[at + 3] === HEADERS) {
        client.destroy();
        return;
      }
    client.write(chunk);
  };
};

export const startCutProxy = async (): Promise<CutProxy> => {
  const sockets = new Set<Socket>();
  let connections = 0;
  const limits = new Map<number, number>();
  const follow = (socket: Socket, other: () => Socket | null): void => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => {
      sockets.delete(socket);
      other()?.destroy();
    });
  };
  const server = createServer((client) => {
    let left = limits.get(++connections) ?? Number.POSITIVE_INFINITY;
    const [host = '', port = ''] = proxy.to?.split(':') ?? [];
    if (host === '') {
      client.destroy();
      return;
    }
    const upstream = connect(Number(port), host);
    follow(client, () => upstream);
    follow(upstream, () => client);
    client.pipe(upstream);
    upstream.on('data', ({ length }: Buffer) => {
      left -= length;
      if (left <= 0) client.destroy();
    });
    if (!proxy.losesAnswer) upstream.pipe(client);
    else upstream.on('data', untilAnswer(client));
    proxy.losesAnswer = false;
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('a TCP server has a port');
  const cut = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  const proxy: CutProxy = {
    target: `127.0.0.1:${address.port}`,
    to: null,
    losesAnswer: false,
    get connections() {
      return connections;
    },
    bytesOf: (connection, bytes) => void limits.set(connection, bytes),
    cut,
    [Symbol.asyncDispose]: async () => {
      cut();
      server.close();
      await once(server, 'close');
    },
  };
  return proxy;
};
