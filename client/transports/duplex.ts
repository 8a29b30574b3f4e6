import type { ClientDuplexStream } from '@grpc/grpc-js';
import { failedReply } from '../kvm-error.js';
import type { ClientMethod, Duplex } from '../transport.js';

/** A stream both ways over a gRPC call. */
export class GrpcDuplex<ReqInit, Res> implements Duplex<ReqInit, Res> {
  private over = false;
  /** Why the call failed; kept, for it may fail before anybody reads. */
  private failure: unknown = null;
  private proceed = (): void => {};

  /** @param settled called once when the call is over */
  constructor(
    private readonly method: ClientMethod<ReqInit, Res>,
    private readonly stream: ClientDuplexStream<ReqInit, Res>,
    settled: () => void,
  ) {
    const end = (failure: unknown = null): void => {
      this.failure ??= failure;
      if (this.over) return;
      this.over = true;
      settled();
      // Whoever waits for room waits for nothing any more.
      this.proceed();
    };
    stream.on('error', end);
    stream.on('status', () => end());
    stream.on('drain', () => this.proceed());
  }

  send(request: ReqInit): Promise<void> {
    if (this.over || this.stream.write(request)) return Promise.resolve();
    return new Promise((resume) => {
      this.proceed = resume;
    });
  }

  end(): void {
    this.stream.end();
  }

  cancel(): void {
    this.stream.cancel();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Res> {
    try {
      yield* this.stream;
      if (this.failure !== null) throw this.failure;
    } catch (error) {
      throw failedReply(error, this.method).error;
    } finally {
      this.cancel();
    }
  }
}
