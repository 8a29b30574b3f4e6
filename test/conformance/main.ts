import { createInterface } from 'node:readline';
import { spawnOnDaemon } from './backend-grpc.js';
import { Executor } from './executor.js';
import { startGrpcHost } from './grpc-host.js';
import { isObject, type Json, stringify } from './json.js';

/**
 * The executor of the oracle's protocol over gRPC: a script on stdin, one JSON object a line, and one line of result for
 * each op on stdout. With `--address HOST:PORT` it works on a daemon that runs, else on one of its own.
 */
const main = async (): Promise<void> => {
  const at = process.argv.indexOf('--address');
  const host = at < 0 ? await startGrpcHost() : null;
  const remote = await spawnOnDaemon(host?.address ?? process.argv[at + 1] ?? '');
  const executor = await Executor.create(remote.calls);
  let i = 0;
  for await (const line of createInterface({ input: process.stdin })) {
    const text = line.trim();
    if (text === '' || text.startsWith('#')) continue;
    process.stdout.write(`${stringify({ i: i++, ...(await answer(executor, text)) })}\n`);
  }
  await remote.close();
  host?.close();
};

const answer = async (executor: Executor, line: string): Promise<Record<string, Json>> => {
  const op = parse(line);
  return isObject(op) ? executor.execute(op) : { op: '?', ret: null, errno: 'BAD_JSON' };
};

const parse = (line: string): Json => {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
};

main().then(
  () => process.exit(0),
  (error: unknown) => {
    process.stderr.write(`oracle executor: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  },
);
