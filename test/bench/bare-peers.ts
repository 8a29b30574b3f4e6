import { readFileSync } from 'node:fs';
import { Client, credentials } from '@grpc/grpc-js';
import type { Authority } from '../certificates.js';
import { BARE_STREAM, type FetchRequest } from './bare-stream-contract.js';
import { type ChildServer, startServer } from './child-server.js';

/** Two processes with nothing but grpc-js between their memories: what a migration is compared with. */
export class BarePeers implements AsyncDisposable {
  private constructor(
    private readonly source: ChildServer,
    private readonly destination: ChildServer,
    private readonly client: Client,
  ) {}

  /** @param program the bundled `bare-stream` */
  static async start(program: string, authority: Authority | null): Promise<BarePeers> {
    const files = authority?.certify('bare') ?? null;
    const args = files === null ? [] : [files.cert, files.key, files.ca];
    const [source, destination] = [await startServer(program, ...args), await startServer(program, ...args)];
    const [cert, key, ca] = args.map((path) => readFileSync(path));
    const secured = cert !== undefined && key !== undefined && ca !== undefined;
    const client = new Client(destination.target, secured ? credentials.createSsl(ca, key, cert) : credentials.createInsecure());
    return new BarePeers(source, destination, client);
  }

  /** Has one process pull from the other. @returns seconds */
  async pull(request: Omit<FetchRequest, 'from'>): Promise<number> {
    const { path, requestSerialize, responseDeserialize } = BARE_STREAM.fetch;
    const begin = performance.now();
    await new Promise<void>((resolve, reject) => {
      const whole = { ...request, from: this.source.target };
      this.client.makeUnaryRequest(path, requestSerialize, responseDeserialize, whole, (error) =>
        error === null ? resolve() : reject(error),
      );
    });
    return (performance.now() - begin) / 1000;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client.close();
    await this.source[Symbol.asyncDispose]();
    await this.destination[Symbol.asyncDispose]();
  }
}
