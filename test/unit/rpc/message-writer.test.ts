import { Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { MessageWriter, prefixOf } from '../../../server/rpc/message-writer.js';

/** A stream that keeps what it is given at once, and takes it when it is told to. */
const createStream = () => {
  const given: Buffer[] = [];
  let taken = (): void => {};
  const stream = new Writable({
    writev: (chunks, callback) => {
      given.push(Buffer.concat(chunks.map(({ chunk }: { readonly chunk: Uint8Array }) => chunk)));
      taken = callback;
    },
  });
  return { stream, given, take: () => taken() };
};

const text = (message: string): Buffer => Buffer.concat([prefixOf(Buffer.byteLength(message)), Buffer.from(message)]);

describe('messages of a call', () => {
  it('go out at once when they are written in one turn, whatever pieces they lie in', async () => {
    const { stream, given, take } = createStream();
    const writer = new MessageWriter(stream, () => {});
    writer.write([Buffer.from('pre'), Buffer.alloc(0), Buffer.from('pare')]);
    writer.write([Buffer.from('d')]);
    expect(given).toEqual([]);
    await setImmediate();
    expect(given).toEqual([Buffer.concat([text('prepare'), text('d')])]);
    take();
    writer.write([]);
    await setImmediate();
    expect(given.slice(1)).toEqual([text('')]);
  });

  it('are somebody’s until the stream has taken them, each its own', async () => {
    const { stream, take } = createStream();
    const sent: string[] = [];
    const writer = new MessageWriter(stream, () => {});
    writer.write([Buffer.from('ack')], () => sent.push('ack'));
    writer.write([Buffer.from('pages')], () => sent.push('pages'));
    await setImmediate();
    expect(sent).toEqual([]);
    take();
    await setImmediate();
    expect(sent).toEqual(['ack', 'pages']);
  });

  it('have no room when 16 wait, and it is said once when they have', async () => {
    const { stream, take } = createStream();
    let drained = 0;
    const writer = new MessageWriter(stream, () => drained++);
    const room = Array.from({ length: 17 }, () => writer.write([Buffer.from('x')]));
    expect(room).toEqual([...new Array(15).fill(true), false, false]);
    await setImmediate();
    expect(drained).toBe(0);
    take();
    await setImmediate();
    expect(drained).toBe(1);
  });
});
