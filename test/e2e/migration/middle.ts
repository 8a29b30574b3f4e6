import {
  Client,
  credentials,
  type handleBidiStreamingCall,
  type handleUnaryCall,
  Metadata,
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServiceError,
} from '@grpc/grpc-js';
import { ExchangeRequest, MigrationHalf, ReceiveVmRequest } from '../../../gen/messages.js';
import { MigrationService } from '../../../gen/services.js';
import { FrameReader, type Side } from './frame-reader.js';

/** Something that one daemon says to the other, on its way. */
export interface Passage {
  readonly session: string;
  readonly from: Side;
  /** `ReceiveVm`, `ReceiveVm answer`; of Exchange: `attach`, `hello`, `proof`, or the frame: `ask`, `commit`. */
  readonly what: string;
  /** Which of its kind from this side in this session, from 1, whatever connection it came over. */
  readonly ordinal: number;
  /** Which connection of the session it comes over, from 1; 0: none of Exchange. */
  readonly connection: number;
  readonly bytes: Buffer;
}

/** What becomes of it. @returns what goes on in its place; nothing that comes after it goes on before this settles */
export type Meddler = (passage: Passage) => readonly Buffer[] | Promise<readonly Buffer[]>;

/** One that only carries. */
const CARRY: Meddler = ({ bytes }) => [bytes];

const OPTIONS = {
  'grpc-node.flow_control_window': 8 * 2 ** 20,
  'grpc.max_receive_message_length': -1,
  'grpc.max_send_message_length': -1,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.enable_channelz': 0,
};

const AS_IS = (bytes: Buffer): Buffer => bytes;
const CALL_MS = 30_000;
const OTHER = { source: 'destination', destination: 'source' } as const;

const asIs = ({ path, requestStream, responseStream }: Shape): MethodDefinition<Buffer, Buffer> => ({
  ...{ path, requestStream, responseStream },
  ...{ requestSerialize: AS_IS, requestDeserialize: AS_IS, responseSerialize: AS_IS, responseDeserialize: AS_IS },
});

interface Shape {
  readonly path: string;
  readonly requestStream: boolean;
  readonly responseStream: boolean;
}

/** What both ends of a carried stream can do. */
interface StreamEnd extends AsyncIterable<Buffer> {
  write(message: Buffer, done: () => void): boolean;
  once(event: 'close', listener: () => void): unknown;
  off(event: 'close', listener: () => void): unknown;
  readonly destroyed: boolean;
}

/** A stream that ends with an error loses what is still being written, and the error with it: so nothing is, then. */
const written = async (to: StreamEnd, message: Buffer): Promise<void> => {
  if (to.destroyed) return;
  await new Promise<void>((resolve) => {
    const done = (): void => {
      to.off('close', done);
      resolve();
    };
    to.once('close', done);
    to.write(message, done);
  });
};

/**
 * A man in the middle of two daemons. He speaks gRPC to both: each is told to dial him where it would dial the other. He has
 * no more than what passes, and, if he is given them, the channels' keys, with which he knows what passes.
 */
export class Middle implements AsyncDisposable {
  meddler: Meddler = CARRY;
  private readonly servers: Server[] = [];
  private readonly counts = new Map<string, number>();

  /** @param keys of the channels; null: the daemons do not seal */
  constructor(private readonly keys: (() => readonly Uint8Array[]) | null) {}

  /**
   * Listens for those who want to reach a daemon.
   * @param target gives its address, when somebody comes
   * @returns the port
   */
  async inFrontOf(target: () => string, host = '127.0.0.1'): Promise<number> {
    const server = new Server(OPTIONS);
    const { receiveVm, cancelMigration, exchange } = MigrationService;
    server.addService(
      { receiveVm: asIs(receiveVm), cancelMigration: asIs(cancelMigration), exchange: asIs(exchange) },
      {
        receiveVm: this.unary(receiveVm, target),
        cancelMigration: this.unary(cancelMigration, target),
        exchange: this.exchange(target),
      },
    );
    this.servers.push(server);
    return new Promise((resolve, reject) =>
      server.bindAsync(`${host}:0`, ServerCredentials.createInsecure(), (error, port) =>
        error === null ? resolve(port) : reject(error),
      ),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.servers) server.forceShutdown();
  }

  private async pass(session: string, from: Side, what: string, connection: number, bytes: Buffer): Promise<readonly Buffer[]> {
    return this.meddler({ session, from, what, ordinal: this.count(`${session} ${from} ${what}`), connection, bytes });
  }

  private count(name: string): number {
    const count = (this.counts.get(name) ?? 0) + 1;
    this.counts.set(name, count);
    return count;
  }

  /** Only the source makes the other one begin. */
  private unary({ path }: Shape, target: () => string): handleUnaryCall<Buffer, Buffer> {
    const name = path.slice(path.lastIndexOf('/') + 1);
    return (call, answer) => {
      const go = async (): Promise<void> => {
        // CancelMigration's request has the session in the same field.
        const session = ReceiveVmRequest.decode(call.request).session ?? '';
        const [request] = await this.pass(session, 'source', name, 0, call.request);
        if (request === undefined) return;
        const metadata = new Metadata();
        for (const token of call.metadata.get('simkvm-process')) metadata.set('simkvm-process', token);
        const client = new Client(target(), credentials.createInsecure(), OPTIONS);
        const options = { deadline: Date.now() + CALL_MS };
        client.makeUnaryRequest(path, AS_IS, AS_IS, request, metadata, options, (error, response) => {
          client.close();
          const pass = async (): Promise<void> => {
            const [passed] = await this.pass(session, 'destination', `${name} answer`, 0, response ?? Buffer.alloc(0));
            if (passed !== undefined) answer(error, passed);
          };
          void pass();
        });
      };
      void go();
    };
  }

  private exchange(target: () => string): handleBidiStreamingCall<Buffer, Buffer> {
    return (caller) => {
      const client = new Client(target(), credentials.createInsecure(), OPTIONS);
      const { path } = MigrationService.exchange;
      const called = client.makeBidiStreamRequest(path, AS_IS, AS_IS, new Metadata());
      called.once('close', () => client.close());
      const ignore = (): void => {};
      caller.on('error', ignore);
      caller.once('cancelled', () => called.cancel());
      let failure: ServiceError | null = null;
      called.on('error', (error: ServiceError) => {
        failure = error;
      });

      let session = '';
      let connection = 0;
      const carry = async (from: StreamEnd, to: StreamEnd, sideOf: (message: Buffer) => Side): Promise<void> => {
        const reader = new FrameReader(this.keys);
        try {
          for await (const message of from) {
            const side = sideOf(message);
            for (const passed of await this.pass(session, side, reader.read(message).what, connection, message))
              await written(to, passed);
          }
        } catch {
          // Told to the other end below.
        }
      };
      let callerSide: Side = 'source';
      const attaching = (message: Buffer): Side => {
        const { attach } = ExchangeRequest.decode(message);
        if (attach !== null) {
          session = attach.session;
          connection = this.count(`${session} connections`);
          callerSide = attach.half === MigrationHalf.MIGRATION_HALF_SOURCE ? 'destination' : 'source';
        }
        return callerSide;
      };
      void carry(caller, called, attaching).then(() => called.end());
      void carry(called, caller, () => OTHER[callerSide]).then(() => {
        if (failure === null) caller.end();
        else caller.emit('error', failure);
      });
    };
  }
}
