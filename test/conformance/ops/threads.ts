import { isObject, type Json, type JsonObject } from '../json.js';
import type { OpArgs } from '../op-args.js';
import { finish, type Operation } from '../operation.js';
import { failedWith } from '../system-calls.js';

const SIGUSR2 = 12;

const opsOf = (args: OpArgs): JsonObject[] => args.list('ops').filter((item: Json): item is JsonObject => isObject(item));

/** The ops run in a child, which then ends. */
const fork: Operation = async (executor, args) => {
  const child = await executor.inChild();
  const results = await child.executeAll(opsOf(args));
  await child.calls.exit();
  return { ret: 0, errno: null, results };
};

const spawn: Operation = async (executor, args) => {
  const thread = executor.onThread();
  const results = thread.executeAll(opsOf(args));
  executor.handles.define(args.text('as', '_t')).thread = { results, signal: (signo) => thread.calls.signal(signo) };
  if (args.has('settle_ms')) await executor.calls.timer(args.number('settle_ms')).expired;
  return { ret: 0, errno: null };
};

const join: Operation = async ({ calls, handles }, args) => {
  const handle = handles.find(args.text('thread'));
  if (handle?.thread === undefined) return finish(failedWith('ESRCH'));
  const limit = calls.timer(args.number('timeout_ms', 5000));
  const results = await Promise.race([handle.thread.results, limit.expired]);
  limit.cancel();
  if (results === undefined) return finish(failedWith('ETIMEDOUT'));
  delete handle.thread;
  return { ret: 0, errno: null, results };
};

const kick: Operation = async ({ handles }, args) => {
  const thread = handles.find(args.text('thread'))?.thread;
  if (thread === undefined) return finish(failedWith('ESRCH'));
  await thread.signal(args.number('sig', SIGUSR2));
  return { ret: 0, errno: null };
};

/** Threads, children and signals. */
export const THREAD_OPS: Readonly<Record<string, Operation>> = {
  fork,
  spawn,
  join,
  kick,
  sigmask: async ({ calls }, args) => finish(await calls.blockSignal(args.number('sig', SIGUSR2), args.truthy('block', true))),
  raise: async ({ calls }, args) => finish(await calls.signal(args.number('sig', SIGUSR2))),
  sleep: async ({ calls }, args) => {
    await calls.timer(args.number('ms', 1)).expired;
    return { ret: 0, errno: null };
  },
  note: async () => ({ ret: 0, errno: null }),
};
