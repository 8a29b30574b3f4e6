import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { prefixOf } from '../../../../server/rpc/message-writer.js';
import { callEnd } from '../../../../server/rpc/migration/call-end.js';
import { MessageReader } from '../../../../server/rpc/migration/message-reader.js';

const MAX = 1000;

const reader = () => {
  const messages: string[] = [];
  const read = new MessageReader(MAX, (message) => {
    messages.push(message.toString());
    return null;
  });
  return { read, messages };
};

const framed = (...texts: string[]): Buffer =>
  Buffer.concat(texts.flatMap((text) => [prefixOf(Buffer.byteLength(text)), Buffer.from(text)]));

describe('messages of gRPC', () => {
  it('are put together, however the network has cut them', () => {
    const texts = ['first', '', 'x'.repeat(300), 'y', '', 'last'];
    const bytes = framed(...texts);
    for (let size = 1; size <= bytes.length; size++) {
      const { read, messages } = reader();
      for (let at = 0; at < bytes.length; at += size) expect(read.take(bytes.subarray(at, at + size))).toBeNull();
      expect(messages, `pieces of ${size}`).toEqual(texts);
    }
    for (let cut = 0; cut <= bytes.length; cut++) {
      const { read, messages } = reader();
      for (const piece of [bytes.subarray(0, cut), bytes.subarray(cut)]) read.take(piece);
      expect(messages, `cut at ${cut}`).toEqual(texts);
    }
  });

  it('are put together in the same memory, one after the other', () => {
    const seen = new Set<ArrayBufferLike>();
    const read = new MessageReader(MAX, ({ buffer }) => {
      seen.add(buffer);
      return null;
    });
    for (const piece of [prefixOf(100), Buffer.alloc(60), Buffer.alloc(40), prefixOf(80), Buffer.alloc(79), Buffer.alloc(1)])
      read.take(piece);
    expect(seen.size).toBe(1);
  });

  it('are refused by their prefix where they are too long', () => {
    const { read, messages } = reader();
    expect(read.take(Buffer.concat([framed('x'.repeat(MAX)), prefixOf(MAX + 1)]))).toEqual({
      code: status.RESOURCE_EXHAUSTED,
      details: 'a message of 1001 bytes has come; at most 1000 are allowed',
      statusDetails: null,
    });
    expect(messages.length).toBe(1);
  });

  it('are refused where they are compressed', () => {
    const { read, messages } = reader();
    expect(read.take(Buffer.from([1, 0, 0, 0, 1, 65]))).toMatchObject({ code: status.UNIMPLEMENTED });
    expect(messages).toEqual([]);
  });

  it('come to an end with the first that is none', () => {
    const wrong = callEnd(status.INTERNAL, 'none');
    const heard: string[] = [];
    const read = new MessageReader(MAX, (message) => {
      heard.push(message.toString());
      return wrong;
    });
    expect(read.take(framed('one', 'two'))).toBe(wrong);
    expect(heard).toEqual(['one']);
  });
});
