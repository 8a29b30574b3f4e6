import { Server, ServerCredentials } from '@grpc/grpc-js';
import { KvmSystem, KvmVm } from '../../gen/services.js';

/*
 * The denominator: a bare grpc-js server with the static codec of the contract. It answers two ioctls with a constant, so
 * that its messages have the sizes of ours and nothing else happens.
 */

const ZERO = { ret: 0 };

const server = new Server();
server.addService(
  { checkExtension: KvmSystem.checkExtension, setUserMemoryRegion: KvmVm.setUserMemoryRegion },
  {
    checkExtension: (_call: unknown, callback: (error: null, response: typeof ZERO) => void) => callback(null, ZERO),
    setUserMemoryRegion: (_call: unknown, callback: (error: null, response: typeof ZERO) => void) => callback(null, ZERO),
  },
);
server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) => {
  if (error !== null) throw error;
  process.stdout.write(`echo listening on 127.0.0.1:${port}\n`);
});
