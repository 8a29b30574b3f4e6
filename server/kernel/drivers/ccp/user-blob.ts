import { Failure, type Result } from '../../failure.js';
import type { UserCopy } from '../../fs/ioctl-arg.js';
import { SEV_FW_BLOB_MAX_SIZE } from './firmware-buffers.js';

/** `KMALLOC_MAX_SIZE`: the longest buffer that the kernel makes where it has no limit of its own, 4 MiB. ENOMEM above. */
export const KMALLOC_MAX_SIZE = 4 * 2 ** 20;

/** `psp_copy_user_blob`: a blob of 1 to 16384 bytes that the firmware is to read. EINVAL for another length, and for NULL. */
export const pspCopyUserBlob = (user: UserCopy, field: string, address: bigint, length: number): Result<Uint8Array> => {
  const kernelRef = 'psp_copy_user_blob';
  if (address === 0n) return new Failure('EINVAL', 'BLOB_ADDRESS', kernelRef, { field, given: '0', allowed: 'not 0' });
  if (length === 0 || length > SEV_FW_BLOB_MAX_SIZE)
    return new Failure('EINVAL', 'BLOB_LENGTH', kernelRef, {
      field,
      given: String(length),
      allowed: `1 to ${SEV_FW_BLOB_MAX_SIZE}`,
    });
  return user.copyIn(address, length);
};
