import type { Outcome } from './outcome.js';
import { type SyscallTable, valueOrThrow } from './syscall.js';

/** The form that throws KvmError. */
export type Throwing<Table> = {
  readonly [Name in keyof Table]: Table[Name] extends (self: never, ...args: infer Args) => Promise<Outcome<infer Value>>
    ? (...args: Args) => Promise<Value>
    : never;
};

/** The form that gives the errno as a value. */
export type Trying<Table> = {
  readonly [Name in keyof Table]: Table[Name] extends (self: never, ...args: infer Args) => infer Result
    ? (...args: Args) => Result
    : never;
};

/** Both forms of every call of a table: `vm.ioeventfd()` throws, `vm.try.ioeventfd()` gives the errno. */
export type Forms<Table> = Throwing<Table> & { readonly try: Trying<Table> };

type Constructor<Args extends readonly unknown[], Self> = new (...args: Args) => Self;

/**
 * Gives the class `Base` the calls of `table` as methods, in both forms: a call is written once, as a line of its table.
 *
 * @example
 * ```ts
 * export class Vm extends withForms(class extends Handle {}, vmCalls) {}
 * ```
 */
export const withForms = <Args extends readonly unknown[], Self extends object, Table extends SyscallTable<Self>>(
  Base: Constructor<Args, Self>,
  table: Table,
): Constructor<Args, Self & Forms<Table>> => {
  class Tries {
    constructor(readonly self: Self) {}
  }
  const { prototype } = Base;
  for (const [name, call] of Object.entries(table)) {
    define(Tries.prototype, name, function tryForm(this: Tries, ...args: never[]) {
      return call(this.self, ...args);
    });
    define(prototype, name, async function throwingForm(this: Self, ...args: never[]) {
      return valueOrThrow(await call(this, ...args));
    });
  }
  Object.defineProperty(prototype, 'try', {
    get(this: Self) {
      return new Tries(this);
    },
  });
  // The compiler cannot follow a table into the methods that the loop above has made of it.
  return Base as Constructor<Args, Self & Forms<Table>>;
};

const define = (target: object, name: string, value: (...args: never[]) => unknown): void => {
  Object.defineProperty(target, name, { value, writable: true, configurable: true });
};
