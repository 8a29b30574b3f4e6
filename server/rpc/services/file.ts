import { FileService } from '../../../gen/services.js';
import { failed } from '../../kernel/failure.js';
import { poll } from '../../kernel/fs/poll.js';
import { fallocate, ftruncate } from '../../kernel/syscalls/allocate.js';
import { fcntl, fstat, open } from '../../kernel/syscalls/descriptors.js';
import { pipe } from '../../kernel/syscalls/events.js';
import { lseek, pread, pwrite, read, write } from '../../kernel/syscalls/io.js';
import { method, refused, reply, ret } from '../call.js';
import { overLimit } from '../limits.js';
import { type Route, unary } from '../route.js';

/** Bytes that one read or write of the contract carries. */
const TRANSFER_MAX = 2 ** 20;
const POLL_FDS_MAX = 1024;

const bytesOf = ({ raw, utf8, word }: { raw: Uint8Array | null; utf8: string | null; word: bigint | null }): Uint8Array => {
  if (raw !== null) return raw;
  if (utf8 !== null) return new TextEncoder().encode(utf8);
  const data = new Uint8Array(8);
  new DataView(data.buffer).setBigUint64(0, word ?? 0n, true);
  return data;
};

/** Files as a process sees them, whatever they are. */
export const fileRoutes: readonly Route[] = [
  unary(
    FileService.open,
    method(
      'open',
      true,
      ret((current, { path, flags }, host) => open(host.kernel, current, path ?? '', flags)),
    ),
  ),
  unary(
    FileService.read,
    method('read', true, function* handle(current, _host, { fd, count, offset }) {
      const length = Number(count ?? 0n);
      const refusal = overLimit('count', length, TRANSFER_MAX, 'bytes');
      if (refusal !== null) return refused(refusal);
      const data = offset === null ? yield* read(current, fd ?? -1, length) : pread(current, fd ?? -1, length, offset);
      return failed(data) ? refused(data) : reply({ ret: data.length, data });
    }),
  ),
  unary(
    FileService.write,
    method(
      'write',
      true,
      ret(function* handle(current, request) {
        const data = bytesOf(request);
        const refusal = overLimit('data', data.length, TRANSFER_MAX, 'bytes');
        if (refusal !== null) return refusal;
        const fd = request.fd ?? -1;
        return request.offset === null ? yield* write(current, fd, data) : pwrite(current, fd, data, request.offset);
      }),
    ),
  ),
  unary(
    FileService.fallocate,
    method(
      'fallocate',
      true,
      ret((current, { fd, mode, offset, len }) => fallocate(current, fd ?? -1, mode, offset ?? 0n, len ?? 0n)),
    ),
  ),
  unary(
    FileService.ftruncate,
    method(
      'ftruncate',
      true,
      ret((current, { fd, length }) => ftruncate(current, fd ?? -1, length ?? 0n)),
    ),
  ),
  unary(
    FileService.fstat,
    method('fstat', false, (current, _host, { fd }) => {
      const stat = fstat(current, fd ?? -1);
      if (failed(stat)) return refused(stat);
      const { inode, mode, size, blksize, blocks } = stat;
      return reply({
        ret: 0,
        stat: { st_ino: inode, st_mode: mode, st_size: size, st_blksize: blksize, st_blocks: blocks },
      });
    }),
  ),
  unary(
    FileService.lseek,
    method(
      'lseek',
      true,
      ret((current, { fd, offset, whence }) => lseek(current, fd ?? -1, offset ?? 0n, whence ?? 0)),
    ),
  ),
  unary(
    FileService.fcntl,
    method(
      'fcntl',
      true,
      ret((current, { fd, cmd, arg }) => fcntl(current, fd ?? -1, cmd ?? -1, Number(arg))),
    ),
  ),
  unary(
    FileService.poll,
    method('poll', false, function* handle(current, host, { fds, timeout_ms }) {
      const refusal = overLimit('fds', fds.length, POLL_FDS_MAX, 'entries');
      if (refusal !== null) return refused(refusal);
      const asked = fds.map(({ fd, events }) => ({ fd: fd ?? -1, events }));
      const answer = yield* poll(host.kernel, current, asked, timeout_ms ?? 0);
      if (failed(answer)) return refused(answer);
      const revents = asked.map((one, index) => ({ ...one, revents: answer[index] ?? 0 }));
      return reply({ ret: revents.filter((one) => one.revents !== 0).length, fds: revents });
    }),
  ),
  unary(
    FileService.pipe,
    method('pipe2', true, function* handle(current, host, { flags }) {
      const ends = yield* pipe(host.kernel, current, flags);
      return failed(ends) ? refused(ends) : reply({ ret: 0, read_fd: ends.reader, write_fd: ends.writer });
    }),
  ),
];
