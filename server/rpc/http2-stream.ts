import { Duplex } from 'node:stream';

const memberOf = (object: unknown, name: string): unknown =>
  typeof object === 'object' && object !== null ? Reflect.get(object, name) : undefined;

/**
 * The stream of HTTP/2 below a call that grpc-js serves. grpc-js copies each message into new memory behind five bytes of its
 * own, which costs a source of guests more than anything else that it does; it has no option for that, and no public way to the
 * stream. The daemon's bundle has the grpc-js in it that package-lock.json names, so that nobody's other version comes here.
 */
export const http2StreamOf = (call: object): Duplex => {
  const stream = memberOf(memberOf(call, 'call'), 'stream');
  if (stream instanceof Duplex) return stream;
  throw new Error('this version of grpc-js keeps the stream of a call somewhere else');
};
