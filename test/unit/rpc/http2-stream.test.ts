import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { http2StreamOf } from '../../../server/rpc/http2-stream.js';

describe('the stream below a call', () => {
  it('is where grpc-js keeps it, and a call without one is an error and no stream', () => {
    const stream = new PassThrough();
    expect(http2StreamOf({ call: { stream } })).toBe(stream);
    for (const call of [{}, { call: null }, { call: {} }, { call: { stream: 'none' } }])
      expect(() => http2StreamOf(call)).toThrow('keeps the stream of a call somewhere else');
  });
});
