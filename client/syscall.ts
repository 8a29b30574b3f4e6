import { status } from '@grpc/grpc-js';
import type { Caller, ENDLESS } from './call.js';
import { KvmError, transportError } from './kvm-error.js';
import type { Outcome } from './outcome.js';
import type { ClientMethod, Reply } from './transport.js';

/** What system calls are made on: something that acts as a process. */
export interface CallingObject {
  readonly caller: Caller;
}

/** What ioctls are made on: a descriptor of a process. */
export interface FdObject extends CallingObject {
  /** @throws KvmError EBADF after close */
  readonly fd: number;
}

/** A call on `Self`. Its own form is the `try` form: the kernel's errno is a value, everything else is thrown. */
export type Syscall<Self, Args extends readonly unknown[], Value> = (self: Self, ...args: Args) => Promise<Outcome<Value>>;

/** Calls by name. `never`: each is checked where it is written and where it is called. */
export type SyscallTable<Self> = Readonly<Record<string, (self: Self, ...args: never[]) => Promise<Outcome<unknown>>>>;

/** A system call: how its arguments make a request, and what of the response is its value. */
export const syscall =
  <Self extends CallingObject, Args extends readonly unknown[], ReqInit, Res, Value>(
    method: ClientMethod<ReqInit, Res>,
    request: (self: Self, ...args: Args) => ReqInit,
    value: (response: Res, self: Self) => Value,
    duration: typeof ENDLESS | null = null,
  ): Syscall<Self, Args, Value> =>
  async (self, ...args) => {
    let message: ReqInit;
    try {
      message = request(self, ...args);
    } catch (error) {
      // EBADF of a descriptor that has been closed here, which never reaches the kernel.
      return outcomeOf<Res, Value>({ error: KvmError.from(error), response: null }, (response) => value(response, self));
    }
    return outcomeOf(await self.caller.call(method, message, duration), (response) => value(response, self));
  };

/** The kernel's answer in a reply. @throws KvmError where there is none */
export const outcomeOf = <Res, Value>({ error, response }: Reply<Res>, value: (response: Res) => Value): Outcome<Value> => {
  if (error === null) return { errno: null, value: value(response), error: null };
  const { errno } = error;
  if (errno === null) throw error;
  return { errno, error, value: response === null ? null : value(response) };
};

/** The same for a call whose first argument is a descriptor, as every ioctl's is. */
export const ioctl = <Args extends readonly unknown[], ReqInit, Res, Value>(
  method: ClientMethod<ReqInit, Res>,
  request: (fd: number, ...args: Args) => ReqInit,
  value: (response: Res, self: FdObject) => Value,
  duration: typeof ENDLESS | null = null,
): Syscall<FdObject, Args, Value> => syscall(method, ({ fd }, ...args) => request(fd, ...args), value, duration);

/** The request of an ioctl without an argument. */
export const bare = (fd: number): { fd: number } => ({ fd });

/** The value of a call that only returns one: an int. */
export const ret = (response: { readonly ret: bigint }): number => Number(response.ret);

/** The value of a call that fills the structure `field`. */
export const out =
  <Field extends string>(field: Field) =>
  <Value extends object>(response: Readonly<Record<Field, Value | null>>): Value =>
    present<Value>(response[field], field);

/** @throws KvmError if the host has left out what this call always answers */
export const present = <Value>(value: Value | null, field: string): Value => {
  if (value === null) throw transportError(status.INTERNAL, field, `the host has answered without ${field}`);
  return value;
};

/** The value of a call that was carried out. @throws KvmError with the errno of one that was not */
export const valueOrThrow = <Value>(outcome: Outcome<Value>): Value => {
  if (outcome.errno === null) return outcome.value;
  const { error } = outcome;
  // The error was made where the reply came in; what helps is where the call was made.
  Error.captureStackTrace(error, valueOrThrow);
  throw error;
};
