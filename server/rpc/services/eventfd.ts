import { EventFdService } from '../../../gen/services.js';
import { failed, type Result } from '../../kernel/failure.js';
import { eventFdGet } from '../../kernel/fs/eventfd.js';
import type { MightSleep } from '../../kernel/sched/wait.js';
import { eventfd } from '../../kernel/syscalls/events.js';
import { read, write } from '../../kernel/syscalls/io.js';
import { type Caller, method, refused, reply, ret } from '../call.js';
import type { Dispatch } from '../dispatch.js';
import { type Route, unary } from '../route.js';
import { serverStream } from '../streams.js';

/** Bytes of a count. */
const COUNT_BYTES = 8;

const countOf = (data: Uint8Array): bigint => new DataView(data.buffer, data.byteOffset).getBigUint64(0, true);

const bytesOfCount = (value: bigint): Uint8Array => {
  const data = new Uint8Array(COUNT_BYTES);
  new DataView(data.buffer).setBigUint64(0, value, true);
  return data;
};

/** Waits until the eventfd is readable and its count another than `last`; null when `signal` ended the wait. */
const nextCount = async (dispatch: Dispatch, caller: Caller, fd: number, last: bigint, signal: AbortSignal) =>
  dispatch.run(
    caller,
    'eventfd_poll',
    function* wait(current): MightSleep<Result<bigint> | null> {
      const file = eventFdGet(current, fd, 'fd');
      if (failed(file)) return file;
      for (;;) {
        if (file.value !== 0n && file.value !== last) return file.value;
        if (file.value === 0n) last = 0n;
        const wake = yield { kind: 'interruptible', queue: file.queue, site: 'eventfd_poll' };
        if (wake === 'signal') return null;
      }
    },
    signal,
  );

/** Event counters. */
export const eventFdRoutes: readonly Route[] = [
  unary(
    EventFdService.create,
    method(
      'eventfd2',
      true,
      ret((current, { initval, flags }) => eventfd(current, initval, flags)),
    ),
  ),
  unary(
    EventFdService.read,
    method('read', true, function* handle(current, _host, { fd }) {
      const file = eventFdGet(current, fd ?? -1, 'fd');
      if (failed(file)) return refused(file);
      const data = yield* read(current, fd ?? -1, COUNT_BYTES);
      return failed(data) ? refused(data) : reply({ ret: data.length, value: countOf(data) });
    }),
  ),
  unary(
    EventFdService.write,
    method(
      'write',
      true,
      ret((current, { fd, value }) => {
        const file = eventFdGet(current, fd ?? -1, 'fd');
        return failed(file) ? file : write(current, fd ?? -1, bytesOfCount(value ?? 0n));
      }),
    ),
  ),
  serverStream(EventFdService.watch, { role: 'process', syscall: 'poll' }, async ({ fd, consume }, context) => {
    const { dispatch, caller, send, signal } = context;
    let last = 0n;
    for (let sequence = 1; !signal.aborted; sequence++) {
      const count = await nextCount(dispatch, caller, fd ?? -1, last, signal);
      if (count === null) return null;
      if (failed(count)) return count;
      last = count;
      if (consume) await dispatch.run(caller, 'read', (current) => read(current, fd ?? -1, COUNT_BYTES));
      await send({ sequence, value: count });
    }
    return null;
  }),
];
