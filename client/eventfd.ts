import type { EventFdServiceReadResponse, Int64Init, WatchResponse } from '../gen/messages.js';
import { EventFdService } from '../gen/services.js';
import { ENDLESS } from './call.js';
import { File } from './file.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { bare, ioctl, ret } from './syscall.js';

/** The system calls on an event counter. */
export const eventFdCalls = {
  /**
   * read(2): takes the count, or 1 of it with EFD_SEMAPHORE; waits for one unless the file is EFD_NONBLOCK.
   * Errno: EAGAIN (EFD_NONBLOCK and the count is 0), EINTR.
   */
  read: ioctl(EventFdService.read, bare, ({ value }: EventFdServiceReadResponse) => value),
  /**
   * write(2): adds `value` (at most 2^64-2) to the count; waits for room unless the file is EFD_NONBLOCK.
   * Errno: EINVAL (2^64-1), EAGAIN (EFD_NONBLOCK and no room), EINTR.
   */
  write: ioctl(EventFdService.write, (fd, value: Int64Init) => ({ fd, value }), ret),
} as const;

/** An event counter of a process, made by `process.eventfd`. */
export class EventFd extends withForms(class extends Handle {}, eventFdCalls) {
  /**
   * Says each time that the counter becomes readable, as an epoll loop would; `value` is the count. There is no deadline:
   * it ends when the loop is left, or an AbortSignal ends it.
   * @param consume whether to take the count with each message; without, a count that stays the same is said once
   * @throws KvmError
   */
  watch(consume = false): AsyncIterable<WatchResponse> {
    return this.caller.serverStream(EventFdService.watch, { fd: this.fd, consume }, ENDLESS);
  }

  /** The same descriptor as a file, for fstat, fcntl and the like. */
  get file(): File {
    return new File(this.caller, this.descriptor);
  }
}
