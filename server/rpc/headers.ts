import type { Metadata } from '@grpc/grpc-js';
import type { CallHeaders } from './dispatch.js';

const first = (metadata: Metadata, key: string): string | undefined => {
  const [value] = metadata.get(key);
  return typeof value === 'string' ? value : undefined;
};

/** Where a caller traces its calls: metadata `traceparent`. */
export const traceOf = (metadata: Metadata): string | undefined => first(metadata, 'traceparent');

/** Peers that cannot be on another machine; on a Unix socket grpc-js names no peer. */
const LOOPBACK_PEER = /^(127\.|\[?::1|\[?::ffff:127\.|ipv4:127\.|ipv6:\[?::1|unix:|unknown|$)/;

/** What the kernel's side needs to know of a call beside its message. */
export const headersOf = (call: { readonly metadata: Metadata; getPeer(): string }): CallHeaders => {
  const { metadata } = call;
  const peer = call.getPeer();
  return {
    process: first(metadata, 'simkvm-process'),
    thread: first(metadata, 'simkvm-thread'),
    requestId: first(metadata, 'simkvm-request-id'),
    acknowledge: first(metadata, 'simkvm-acknowledge'),
    onLoopback: LOOPBACK_PEER.test(peer),
    peer,
  };
};
