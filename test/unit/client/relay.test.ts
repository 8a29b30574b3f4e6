import { describe, expect, it } from 'vitest';
import { KvmError } from '../../../client/kvm-error.js';
import { type RelayOptions, relayMigration } from '../../../client/relay.js';
import type { ClientMethod, Duplex } from '../../../client/transport.js';
import { type ExchangeAttach, ExchangeRequest, ExchangeResponse, MigrationHalf } from '../../../gen/messages.js';
import { callerOver, FakeTransport } from './fake-transport.js';

/** A daemon's end of one Exchange: what it has been told, and what it says. */
class DaemonEnd {
  readonly heard: Buffer[] = [];
  cancelled = false;
  private readonly queue: (Buffer | { readonly end: KvmError | null })[] = [];
  private wake = (): void => {};

  constructor(readonly attach: ExchangeAttach | null) {}

  say(bytes: Uint8Array): void {
    this.queue.push(Buffer.from(bytes));
    this.wake();
  }

  end(error: KvmError | null = null): void {
    this.queue.push({ end: error });
    this.wake();
  }

  async *said(): AsyncIterable<Buffer> {
    for (;;) {
      const next = this.queue.shift();
      if (next === undefined) await new Promise<void>((resolve) => Object.assign(this, { wake: resolve }));
      else if (Buffer.isBuffer(next)) yield next;
      else if (next.end !== null) throw next.end;
      else return;
    }
  }
}

/** A daemon that takes every Exchange. */
class Daemon extends FakeTransport {
  readonly ends: DaemonEnd[] = [];
  private waiting: (() => void)[] = [];

  override duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>): Duplex<ReqInit, Res> {
    let end: DaemonEnd | null = null;
    const opened = (request: Buffer): DaemonEnd => {
      const made = new DaemonEnd(ExchangeRequest.decode(request).attach);
      this.ends.push(made);
      for (const wake of this.waiting.splice(0)) wake();
      return made;
    };
    return {
      send: async (request) => {
        const bytes = method.requestSerialize(request);
        if (end === null) end = opened(bytes);
        else end.heard.push(bytes);
      },
      end: () => {},
      cancel: () => {
        if (end === null || end.cancelled) return;
        end.cancelled = true;
        end.end(new KvmError({ code: 1, message: 'cancelled', reason: 'CANCELLED', details: {}, response: null }));
      },
      async *[Symbol.asyncIterator]() {
        if (end !== null) for await (const bytes of end.said()) yield method.responseDeserialize(bytes);
      },
    };
  }

  /** The `count`-th Exchange from 1, once it is there. */
  async stream(count: number): Promise<DaemonEnd> {
    for (;;) {
      const end = this.ends[count - 1];
      if (end !== undefined) return end;
      await new Promise<void>((resolve) => this.waiting.push(resolve));
    }
  }
}

const refused = (errno: string, reason: string): KvmError =>
  new KvmError({ code: 7, message: reason, reason, details: { errno }, response: null });
const broken = new KvmError({ code: 14, message: 'connection lost', reason: 'UNAVAILABLE', details: {}, response: null });

const begin = (more: Partial<RelayOptions> = {}) => {
  const [here, there] = [new Daemon(), new Daemon()];
  const done = relayMigration({
    session: 'm1',
    source: { caller: callerOver(here) },
    destination: { caller: callerOver(there) },
    ...more,
  });
  done.catch(() => {});
  return { here, there, done };
};

const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const sealed = (...bytes: number[]) => ExchangeResponse.encode({ sealed: Uint8Array.from(bytes) }).finish();

describe('a relay', () => {
  it('calls each daemon for its half, and speaks for none', async () => {
    const { here, there } = begin();
    expect((await here.stream(1)).attach).toMatchObject({
      session: 'm1',
      half: MigrationHalf.MIGRATION_HALF_SOURCE,
      stream: 0,
    });
    expect((await there.stream(1)).attach?.half).toBe(MigrationHalf.MIGRATION_HALF_DESTINATION);
  });

  it('passes on what each says as what the other is told, in order', async () => {
    const { here, there } = begin();
    const [source, destination] = [await here.stream(1), await there.stream(1)];
    source.say(ExchangeResponse.encode({ hello: Uint8Array.of(1) }).finish());
    destination.say(ExchangeResponse.encode({ hello: Uint8Array.of(2) }).finish());
    source.say(ExchangeResponse.encode({ proof: Uint8Array.of(3) }).finish());
    source.say(sealed(4));
    await settle();
    expect(destination.heard.map((bytes) => ExchangeRequest.decode(bytes))).toMatchObject([
      { hello: Uint8Array.of(1) },
      { proof: Uint8Array.of(3) },
      { sealed: Uint8Array.of(4) },
    ]);
    expect(source.heard.map((bytes) => ExchangeRequest.decode(bytes))).toMatchObject([{ hello: Uint8Array.of(2) }]);
  });

  it('leaves the session to another relay that has come for it', async () => {
    const { here, there, done } = begin();
    (await here.stream(1)).say(sealed(1));
    await settle();
    (await there.stream(1)).end(refused('EBUSY', 'STREAM_REPLACED'));
    await expect(done).rejects.toMatchObject({ reason: 'STREAM_REPLACED' });
    expect([here.ends.length, there.ends.length]).toEqual([1, 1]);
  });

  it('is done when a daemon ends the stream', async () => {
    const { here, there, done } = begin();
    (await here.stream(1)).end();
    await done;
    expect((await there.stream(1)).cancelled).toBe(true);
  });

  it('calls both again when a stream breaks', async () => {
    const { here, there, done } = begin();
    (await here.stream(1)).say(sealed(1));
    (await there.stream(1)).end(broken);
    const [source, destination] = [await here.stream(2), await there.stream(2)];
    source.say(sealed(2));
    await settle();
    expect(destination.heard).toEqual([Buffer.from(sealed(2))]);
    source.end();
    await done;
  });

  it('goes on where a daemon has refused a frame, which is the daemons’ affair', async () => {
    const { here, there, done } = begin();
    (await here.stream(1)).say(sealed(1));
    await settle();
    (await there.stream(1)).end(refused('EACCES', 'FRAME_NOT_AUTHENTIC'));
    (await here.stream(2)).end();
    await done;
  });

  it('says why a daemon does not let it in', async () => {
    const { here, there, done } = begin();
    await here.stream(1);
    (await there.stream(1)).end(refused('EACCES', 'PEER_NOT_ALLOWED'));
    await expect(done).rejects.toMatchObject({ errno: 'EACCES', reason: 'PEER_NOT_ALLOWED' });
    expect(here.ends[0]?.cancelled).toBe(true);
  });

  it('stops when it is told to', async () => {
    const abort = new AbortController();
    const { here, there, done } = begin({ signal: abort.signal });
    // A transport ends the calls of a signal that is aborted.
    abort.signal.addEventListener('abort', () => [...here.ends, ...there.ends].map((end) => end.end(broken)));
    await Promise.all([here.stream(1), there.stream(1)]);
    abort.abort();
    await done;
  });

  it('carries as many streams as the session has', async () => {
    const { here, there } = begin({ streams: 3 });
    await Promise.all([here.stream(3), there.stream(3)]);
    expect(here.ends.map(({ attach }) => attach?.stream).toSorted()).toEqual([0, 1, 2]);
  });
});
