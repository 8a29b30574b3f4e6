import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Client, credentials } from '@grpc/grpc-js';

const START_MS_MAX = 30_000;

/** Runs the daemon once, up to and including an answered call, and lets it write down what V8 has compiled by then. */
export const writeCodeCache = async (launcher: string): Promise<void> => {
  const daemon = spawn(process.execPath, [launcher, '--listen', '127.0.0.1:0'], {
    env: { ...process.env, SIMKVM_WRITE_CODE_CACHE: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: START_MS_MAX,
  });
  const ended = once(daemon, 'exit');
  const address = await listeningAddress(daemon.stdout, daemon.stderr, ended);
  await getHost(address);
  daemon.kill('SIGTERM');
  const [status] = await ended;
  if (status !== 0) throw new Error(`the daemon ended with status ${status}`);
};

/** The address that the daemon says it listens on. */
const listeningAddress = async (
  stdout: NodeJS.ReadableStream,
  stderr: NodeJS.ReadableStream,
  ended: Promise<unknown>,
): Promise<string> => {
  let output = '';
  const said = new Promise<string>((resolve) => {
    const read = (chunk: Buffer): void => {
      output += chunk.toString();
      const address = /127\.0\.0\.1:[1-9]\d*/.exec(output)?.[0];
      if (address !== undefined) resolve(address);
    };
    stdout.on('data', read);
    stderr.on('data', read);
  });
  const gaveUp = ended.then(() => {
    throw new Error(`the daemon does not start:\n${output}`);
  });
  return Promise.race([said, gaveUp]);
};

const getHost = async (address: string): Promise<void> => {
  const client = new Client(address, credentials.createInsecure());
  const same = (bytes: Buffer): Buffer => bytes;
  const deadline = Date.now() + START_MS_MAX;
  await new Promise<void>((resolve, reject) => {
    client.makeUnaryRequest('/simkvm.v1.HostService/GetHost', same, same, Buffer.alloc(0), { deadline }, (error) =>
      error === null ? resolve() : reject(error),
    );
  });
  client.close();
};
