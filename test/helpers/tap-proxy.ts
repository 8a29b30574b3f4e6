import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

/** A TCP proxy in front of a daemon that keeps what the daemon answers. */
export interface TapProxy extends AsyncDisposable {
  readonly target: string;
  /** Every byte that the daemon has sent since the last time that this was asked. */
  take(): Buffer;
  /** From a connection over which the daemon has sent so many bytes nothing more comes, and nobody is told, before `goOn`. */
  stallAfter(bytes: number): void;
  goOn(): void;
}

export const startTapProxy = async (daemon: string): Promise<TapProxy> => {
  const [host = '', port = ''] = daemon.split(':');
  const sockets = new Set<Socket>();
  let answered: Buffer[] = [];
  let most = Number.POSITIVE_INFINITY;
  const server = createServer((client) => {
    const upstream = connect(Number(port), host);
    let passed = 0;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => sockets.delete(socket));
    }
    client.pipe(upstream);
    upstream.on('data', (bytes: Buffer) => {
      answered.push(bytes);
      client.write(bytes);
      passed += bytes.length;
      if (passed >= most) upstream.pause();
    });
    client.on('close', () => upstream.destroy());
    upstream.on('close', () => client.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('a TCP server has a port');
  return {
    target: `127.0.0.1:${address.port}`,
    take: () => {
      const taken = Buffer.concat(answered);
      answered = [];
      return taken;
    },
    stallAfter: (bytes) => {
      most = bytes;
    },
    goOn: () => {
      most = Number.POSITIVE_INFINITY;
      for (const socket of sockets) socket.resume();
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
};
