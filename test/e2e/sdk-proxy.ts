import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/** A TCP proxy in front of a daemon that can lose what the daemon answers. */
export interface LossyProxy extends AsyncDisposable {
  readonly target: string;
  /** From now on answers are swallowed; resolves when one has been, and the connection has been cut. */
  loseNextAnswer(): Promise<void>;
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
  let losing: (() => void) | null = null;
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
      losing();
      losing = null;
      client.destroy();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port: own } = server.address() as AddressInfo;
  return {
    target: `127.0.0.1:${own}`,
    loseNextAnswer: () =>
      new Promise((resolve) => {
        losing = resolve;
      }),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
};
