import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/** A TCP proxy in front of a daemon that can lose what the daemon answers. */
export interface LossyProxy extends AsyncDisposable {
  readonly target: string;
  /** The next answer is swallowed; resolves when it has been, and its connection has been cut, or that of the lease too. */
  loseNextAnswer(cut: 'its connection' | 'every connection'): Promise<void>;
}

/** HTTP/2: type of a frame, and bytes of its head (RFC 9113, section 4.1). */
const HEADERS = 1;
const FRAME_HEAD = 9;

/** The types of the frames in `bytes`, which begins with one. */
const frameTypes = (bytes: Buffer): number[] => {
  const types: number[] = [];
  for (let at = 0; at + FRAME_HEAD <= bytes.length; at += FRAME_HEAD + bytes.readUIntBE(at, 3))
    types.push(bytes.readUInt8(at + 3));
  return types;
};

export const startLossyProxy = async (daemon: string): Promise<LossyProxy> => {
  const [host = '', port = ''] = daemon.split(':');
  const sockets = new Set<Socket>();
  let losing: { readonly every: boolean; readonly done: () => void } | null = null;
  const server = createServer((client) => {
    const upstream = connect(Number(port), host);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => sockets.delete(socket));
    }
    client.pipe(upstream);
    client.on('close', () => upstream.destroy());
    upstream.on('close', () => client.destroy());
    upstream.on('data', (bytes: Buffer) => {
      if (losing === null) return void client.write(bytes);
      if (!frameTypes(bytes).includes(HEADERS)) return;
      losing.done();
      for (const socket of losing.every ? sockets : [client]) socket.destroy();
      losing = null;
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port: own } = server.address() as AddressInfo;
  return {
    target: `127.0.0.1:${own}`,
    loseNextAnswer: (cut) =>
      new Promise((done) => {
        losing = { every: cut === 'every connection', done };
      }),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
};
