import { type Failure, failed, type Result } from '../../failure.js';
import type { UserCopy } from '../../fs/ioctl-arg.js';

/** `get_user` of a __u64. EFAULT. */
export const copyU64In = (user: UserCopy, address: bigint): Result<bigint> => {
  const data = user.copyIn(address, 8);
  return failed(data) ? data : new DataView(data.buffer, data.byteOffset).getBigUint64(0, true);
};

/** `put_user` of a __u64. EFAULT. */
export const copyU64Out = (user: UserCopy, address: bigint, value: bigint): Failure | null => {
  const data = new DataView(new ArrayBuffer(8));
  data.setBigUint64(0, value, true);
  return user.copyOut(address, new Uint8Array(data.buffer));
};
