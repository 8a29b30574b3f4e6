import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Client, credentials } from '@grpc/grpc-js';
import { KvmCap, SimKvm } from '../../client/index.js';
import { KvmSystem } from '../../gen/services.js';
import { startServer, startSimkvmd } from './child-server.js';
import { alternate, type Figure } from './figure.js';

const ROUNDS = 9;

const milliseconds = async (what: () => Promise<unknown>): Promise<number> => {
  const begin = performance.now();
  await what();
  return performance.now() - begin;
};

/** From nothing to the first answer of the daemon. */
const coldSimkvmd = async (): Promise<number> => {
  const begin = performance.now();
  await using server = await startSimkvmd();
  await using simkvm = await SimKvm.connect(server.target);
  await simkvm.host.getHost();
  return performance.now() - begin;
};

/** The same for a bare grpc-js server with a static codec. */
const coldEcho = async (program: string): Promise<number> => {
  const begin = performance.now();
  await using server = await startServer(program);
  const client = new Client(server.target, credentials.createInsecure());
  const { path, requestSerialize, responseDeserialize } = KvmSystem.checkExtension;
  const request = { fd: 3, extension: KvmCap.KVM_CAP_IRQCHIP };
  await new Promise<void>((resolve, reject) =>
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error) =>
      error === null ? resolve() : reject(error),
    ),
  );
  const elapsed = performance.now() - begin;
  client.close();
  return elapsed;
};

/** An empty program. */
const coldNode = (): Promise<number> =>
  milliseconds(() => once(spawn(process.execPath, ['-e', '0'], { stdio: 'ignore' }), 'exit'));

/** Start of the daemon to its first answered call, against `node -e 0` and against a bare grpc-js server's. */
export const measureColdStart = async (echoProgram: string): Promise<Figure[]> => {
  const empty = await alternate(ROUNDS, coldSimkvmd, coldNode);
  const echo = await alternate(ROUNDS, coldSimkvmd, () => coldEcho(echoProgram));
  return [
    {
      name: 'cold start to the first answered call',
      ours: `${empty.ours.toFixed(0)} ms`,
      baseline: `node -e 0 ${empty.baseline.toFixed(0)} ms`,
      ratio: empty.ratio,
      target: 'at most 2.2',
    },
    {
      name: 'cold start to the first answered call',
      ours: `${echo.ours.toFixed(0)} ms`,
      baseline: `bare echo ${echo.baseline.toFixed(0)} ms`,
      ratio: echo.ratio,
      target: 'none set',
    },
  ];
};
