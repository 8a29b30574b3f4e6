import { SyscallService } from '../../../gen/services.js';
import { ERRNO } from '../../kernel/errno.js';
import { failed } from '../../kernel/failure.js';
import { InlineCopy } from '../../kernel/fs/inline-copy.js';
import { ioctl } from '../../kernel/syscalls/ioctl.js';
import { method, refused, reply } from '../call.js';
import { errorMetadata } from '../error-details.js';
import { mmOf } from '../ioctl/method.js';
import { overLimit } from '../limits.js';
import { type Route, unary } from '../route.js';

const DATA_MAX = 2 ** 20;

/** The raw tier. It answers OK whatever the kernel answers. */
export const syscallRoutes: readonly Route[] = [
  unary(
    SyscallService.ioctl,
    method('ioctl', true, function* handle(current, _host, { fd, request, value, address, data }) {
      const refusal = overLimit('data', data?.length ?? 0, DATA_MAX, 'bytes');
      if (refusal !== null) return refused(refusal);
      const user = new InlineCopy(mmOf(current));
      const inline = data === null ? null : user.place(data.slice());
      const argument = inline ?? address ?? value ?? 0n;
      const result = yield* ioctl(current, fd ?? -1, request ?? 0, { value: argument, user });
      const answer = inline === null ? {} : { data: user.contents(inline) };
      if (!failed(result)) return reply({ ret: result, ...answer });
      return reply({
        ret: -1,
        errno: ERRNO[result.errno],
        errno_name: result.errno,
        ...answer,
        reason: result.reason,
        kernel_ref: result.kernelRef,
        details: errorMetadata(result, `ioctl 0x${(request ?? 0).toString(16)}`),
      });
    }),
  ),
];
