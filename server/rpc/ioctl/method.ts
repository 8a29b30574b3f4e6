import { failed } from '../../kernel/failure.js';
import { InlineCopy } from '../../kernel/fs/inline-copy.js';
import type { AddressSpace } from '../../kernel/mm/address-space.js';
import type { Task } from '../../kernel/sched/task.js';
import { andThen, type MaySleep } from '../../kernel/sched/wait.js';
import { ioctlMaySleep } from '../../kernel/syscalls/ioctl.js';
import { IOCTL, IOCTLS, type IoctlName } from '../../kernel/uapi/ioctls.js';
import { type Reply, refused, type UnaryMethod } from '../call.js';
import type { ArgCodec } from './arg-codec.js';
import { codecOf } from './codecs.js';
import { isMessage, type Message } from './struct-message.js';

/** A typed RPC of an ioctl: its messages as the codec has them. */
export type IoctlMethod = UnaryMethod<Message, Message>;

/** The address space that a caller's pointers mean. */
export const mmOf = (current: Task): AddressSpace => {
  const { mm } = current.process;
  if (mm === null) throw new Error(`${current.process.name} has no memory`);
  return mm;
};

export const fdOf = (request: Message): number => (typeof request.fd === 'number' ? request.fd : -1);

/** The third argument of one call, and how its message is made of what the kernel has left. */
export interface Argument {
  readonly value: bigint;
  answer(): Message;
}

/** Issues the ioctl; the response has `ret` and, where something was written, the structure's message. */
export const issue = (
  current: Task,
  request: Message,
  number: number,
  inline: InlineCopy,
  argument: Argument,
): MaySleep<Reply<Message>> =>
  andThen(ioctlMaySleep(current, fdOf(request), number, { value: argument.value, user: inline }), (result): Reply<Message> => {
    if (!failed(result)) return { failure: null, response: { ret: result, ...argument.answer() } };
    return { failure: result, response: inline.written ? { ret: -1, ...argument.answer() } : null };
  });

/** 64 bits of a field: enums and narrower integers come as numbers. */
const wordOf = (value: unknown): bigint =>
  BigInt.asUintN(64, typeof value === 'bigint' ? value : BigInt(typeof value === 'number' ? value : 0));

const nothing = (): Message => ({});

const method = (syscall: IoctlName, handle: IoctlMethod['handle'], mutates = true): IoctlMethod => ({
  role: 'process',
  mutates,
  syscall,
  handle,
});

/** An ioctl whose argument is ignored, or an integer in field `field` of the request. */
export const valueIoctl = (name: IoctlName, field?: string, mutates = true): IoctlMethod =>
  method(
    name,
    (current, _host, request) => {
      const value = wordOf(field === undefined ? 0n : request[field]);
      return issue(current, request, IOCTL[name], new InlineCopy(mmOf(current)), { value, answer: nothing });
    },
    mutates,
  );

/** An ioctl whose argument points to the structure that field `field` of the request, or of the response, stands for. */
export const structIoctl = (name: IoctlName, field: string): IoctlMethod => {
  const entry = IOCTLS.get(name);
  if (entry?.arg.kind !== 'struct' || entry.arg.struct === null) throw new Error(`${name} takes no structure`);
  const { direction, struct } = entry.arg;
  const answers = direction !== 'in' || ANSWERS_BY_POINTER.has(name);
  return codecIoctl(name, field, codecOf(struct), answers, direction !== 'out');
};

/** Their structure goes in only, but a pointer in it says where to write. */
const ANSWERS_BY_POINTER: ReadonlySet<IoctlName> = new Set(['KVM_GET_DIRTY_LOG', 'KVM_GET_DEVICE_ATTR', 'KVM_GET_ONE_REG']);

/** An ioctl with a codec of its own; without the message the argument is what `codec` makes of an empty one. */
export const codecIoctl = (name: IoctlName, field: string, codec: ArgCodec, answers: boolean, mutates = true): IoctlMethod =>
  method(
    name,
    (current, _host, request) => {
      const inline = new InlineCopy(mmOf(current));
      const message = request[field];
      const value =
        !isMessage(message) && codec.absent !== undefined
          ? codec.absent
          : codec.encode(isMessage(message) ? message : {}, inline, field);
      if (failed(value)) return refused(value);
      const answer = answers ? (): Message => ({ [field]: codec.decode(value, inline) }) : nothing;
      return issue(current, request, IOCTL[name], inline, { value, answer });
    },
    mutates,
  );

/** An ioctl that takes the address of one 64-bit word, which the request has in `field`. */
export const wordIoctl = (name: IoctlName, field: string): IoctlMethod =>
  method(name, (current, _host, request) => {
    const inline = new InlineCopy(mmOf(current));
    const data = new Uint8Array(8);
    new DataView(data.buffer).setBigUint64(0, wordOf(request[field]), true);
    return issue(current, request, IOCTL[name], inline, { value: inline.place(data), answer: nothing });
  });
