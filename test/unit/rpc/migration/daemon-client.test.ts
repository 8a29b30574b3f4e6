import { createServer } from 'node:net';
import { describe, expect, it } from 'vitest';
import type { Failure } from '../../../../server/kernel/failure.js';
import { DaemonClient } from '../../../../server/rpc/migration/daemon-client.js';
import { createVolatileMigrationHost } from '../../../../server/rpc/migration/migration-host.js';

/** Why a daemon at an address cannot be dialled. */
const dialled = (address: string, called: 'source' | 'destination'): Promise<Failure | null> =>
  new Promise((resolve) => {
    const client = new DaemonClient(createVolatileMigrationHost(), address);
    client.exchange('session', called, 0, () => ({ received: () => {}, drained: () => {}, ended: resolve }));
  });

describe('a daemon that cannot be dialled', () => {
  it.each(['999.1.1.1:7341', 'no_such_name.invalid:7341', '127.0.0.1:1', '[::1]:1'])(
    'is said to be unreachable: %s',
    async (address) => {
      for (const called of ['source', 'destination'] as const)
        expect(await dialled(address, called)).toMatchObject({
          errno: 'EHOSTUNREACH',
          reason: 'DAEMON_UNREACHABLE',
          details: { daemon: address },
        });
    },
  );

  it('is one that hangs up, or speaks something else', async () => {
    for (const word of ['', 'HTTP/1.1 200 OK\r\n\r\n']) {
      const server = createServer((socket) => socket.on('error', () => {}).end(word));
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const address = server.address();
      if (address === null || typeof address === 'string') throw new Error('no address');
      for (const called of ['source', 'destination'] as const)
        expect(await dialled(`127.0.0.1:${address.port}`, called)).toMatchObject({ errno: 'EHOSTUNREACH' });
      server.close();
    }
  });
});
