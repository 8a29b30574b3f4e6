import type { Failure, Result } from '../failure.js';
import { failed } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Fields, Struct, ValueOf } from '../uapi/struct.js';

/** `copy_from_user(&value, argp, sizeof(value))`. EFAULT. */
export const copyStruct = <F extends Fields>(arg: IoctlArg, layout: Struct<F>): Result<ValueOf<F>> => {
  const data = arg.user.copyIn(arg.value, layout.size);
  return failed(data) ? data : layout.decode(data);
};

/** `copy_to_user(argp, &value, sizeof(value))`: the whole structure, zero where `value` has nothing. EFAULT. */
export const copyStructOut = <F extends Fields>(arg: IoctlArg, layout: Struct<F>, value: Partial<ValueOf<F>>): Failure | null =>
  arg.user.copyOut(arg.value, layout.encodeOnce(value));
