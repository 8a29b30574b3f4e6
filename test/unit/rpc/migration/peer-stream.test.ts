import { describe, expect, it } from 'vitest';
import { ExchangeResponse } from '../../../../gen/messages.js';
import { failed } from '../../../../server/kernel/failure.js';
import { type BatchMemory, BatchRoom } from '../../../../server/migration/batch-room.js';
import type { Frame } from '../../../../server/migration/message.js';
import { decodeFrame } from '../../../../server/rpc/migration/frame-codec.js';
import { createVolatileMigrationHost } from '../../../../server/rpc/migration/migration-host.js';
import { PeerStream } from '../../../../server/rpc/migration/peer-stream.js';

const PAGES = 256;
const PAGE = 4096;

interface Written {
  readonly message: Buffer;
  /** Where the last bytes of it lie. */
  readonly last: ArrayBufferLike | undefined;
  readonly sent: (() => void) | undefined;
}

/** The source's end of a stream that nobody seals, over a wire that keeps what is written. */
const openStream = async () => {
  const written: Written[] = [];
  let drained = 0;
  const stream = new PeerStream({
    role: 'source',
    session: 'session',
    index: 0,
    host: { ...createVolatileMigrationHost(), unsealed: true },
    wire: {
      write: (message, sent) => {
        written.push({ message: Buffer.concat(message), last: message.at(-1)?.buffer, sent });
        return true;
      },
      end: () => {},
    },
    owner: { opened: () => null, received: () => {}, violated: () => {}, drained: () => void drained++, ended: () => {} },
  });
  await new Promise<void>((resolve) => queueMicrotask(resolve));
  return { stream, written, drained: () => drained };
};

/** @param headerBytes of all headers: none where the pages are clear */
const framed = (memory: BatchMemory, headerBytes = 0): Frame => {
  const gfns = Array.from({ length: memory.bytes.length / PAGE }, (_, index) => 2 ** 30 + index);
  const form = headerBytes === 0 ? ('clear' as const) : ('sealed' as const);
  const batch = { form, gfns, headers: new Uint8Array(headerBytes).fill(0x55), data: memory.bytes, memory };
  return { session: 'session', boot: 'boot', kind: 'data', sequence: 7, message: { kind: 'pages', batch } };
};

const readFrame = (message: Buffer): Frame => {
  const frame = decodeFrame(ExchangeResponse.decode(message).sealed ?? new Uint8Array(0));
  if (failed(frame)) throw new Error(frame.reason);
  return frame;
};

const contentOf = (message: Buffer) => {
  const frame = readFrame(message);
  if (frame.kind !== 'data' || frame.message.kind !== 'pages') throw new Error(`a frame of kind ${frame.kind}`);
  const { gfns, headers, data } = frame.message.batch;
  return { sequence: frame.sequence, gfns, headers: Buffer.from(headers), data: Buffer.from(data) };
};

describe('pages on a stream that is not sealed', () => {
  it('are sent from where they lie, with what the contract has in front of them', async () => {
    const { stream, written } = await openStream();
    const memory = new BatchRoom().take(PAGES * PAGE);
    memory.bytes.forEach((_, index) => {
      memory.bytes[index] = index % 251;
    });
    const pages = Buffer.from(memory.bytes);
    for (const headerBytes of [0, PAGES * 52]) {
      stream.send(framed(memory, headerBytes));
      const { message, last } = written.at(-1) ?? { message: Buffer.alloc(0), last: undefined };
      expect(last).toBe(memory.bytes.buffer);
      const { gfns, headers, data, sequence } = contentOf(message);
      expect([sequence, gfns.length, gfns.at(-1), headers.length]).toEqual([7, PAGES, 2 ** 30 + PAGES - 1, headerBytes]);
      expect(headers.every((byte) => byte === 0x55)).toBe(true);
      expect(data.equals(pages)).toBe(true);
      written.at(-1)?.sent?.();
    }
  });

  it('keep their memory until every message with them has been sent, however early they are acknowledged', async () => {
    const { stream, written } = await openStream();
    const room = new BatchRoom();
    const memory = room.take(PAGES * PAGE);
    const frame = framed(memory);
    stream.send(frame);
    stream.send(frame);
    memory.release();
    written[0]?.sent?.();
    expect(room.take(PAGES * PAGE).bytes.buffer).not.toBe(memory.bytes.buffer);
    written[1]?.sent?.();
    expect(room.take(PAGES * PAGE).bytes.buffer).toBe(memory.bytes.buffer);
  });
});

describe('a stream', () => {
  it('has no room for more pages than the network is about to take, and says so when it has again', async () => {
    const { stream, written, drained } = await openStream();
    const room = new BatchRoom();
    for (let messages = 0; stream.writable; messages++) {
      expect(messages).toBeLessThan(8);
      stream.send(framed(room.take(PAGES * PAGE)));
    }
    expect(drained()).toBe(0);
    written[0]?.sent?.();
    expect([stream.writable, drained()]).toEqual([true, 1]);
  });
});
