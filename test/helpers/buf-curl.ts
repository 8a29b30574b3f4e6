import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** `buf curl` against a daemon, with reflection as its only source. Rejects with what it printed. */
export const bufCurl = async (address: string, target: string, data?: string): Promise<string> => {
  const common = ['curl', '--http2-prior-knowledge', '--protocol', 'grpc'];
  const rest = data === undefined ? [target, `http://${address}`] : ['-d', data, `http://${address}/${target}`];
  try {
    return (await run('node_modules/.bin/buf', [...common, ...rest])).stdout;
  } catch (error) {
    throw new Error(error instanceof Error && 'stderr' in error ? String(error.stderr) : String(error));
  }
};
