import { createHash } from 'node:crypto';
import type { LoadRequest } from '../../../gen/messages.js';
import { MemoryService } from '../../../gen/services.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import { andThen } from '../../kernel/sched/wait.js';
import { madvise, memfdCreate, mmap, mprotect, munmap, readMemory, writeMemory } from '../../kernel/syscalls/memory.js';
import { type Caller, method, refused, reply, ret } from '../call.js';
import type { Dispatch } from '../dispatch.js';
import { overLimit } from '../limits.js';
import { type Route, unary } from '../route.js';
import { clientStream, serverStream } from '../streams.js';

/** Bytes that one message carries. */
const TRANSFER_MAX = 2 ** 20;
const CHUNK_DEFAULT = 256 * 2 ** 10;
const BYTE_MAX = 255;

const sha256 = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');

interface WriteData {
  readonly raw: Uint8Array | null;
  readonly fill_byte: number | null;
  readonly utf8: string | null;
  readonly length: bigint;
}

const bytesOf = ({ raw, fill_byte, utf8, length }: WriteData): Result<Uint8Array> => {
  if (fill_byte === null) return raw ?? new TextEncoder().encode(utf8 ?? '');
  if (fill_byte > BYTE_MAX)
    return new Failure('EINVAL', 'FIELD_OUT_OF_RANGE', 'simkvmd', {
      field: 'fill_byte',
      given: String(fill_byte),
      allowed: '0 to 255',
    });
  return overLimit('length', Number(length), TRANSFER_MAX, 'bytes') ?? new Uint8Array(Number(length)).fill(fill_byte);
};

const load = async (requests: AsyncIterable<LoadRequest>, dispatch: Dispatch, caller: Caller) => {
  const digest = createHash('sha256');
  let at: bigint | null = null;
  let stored = 0;
  for await (const { addr, chunk } of requests) {
    at ??= addr;
    if (at === null)
      return new Failure('EINVAL', 'FIELD_MISSING', 'simkvmd', { field: 'addr', allowed: 'an address in the first message' });
    const to = at;
    const refusal =
      overLimit('chunk', chunk.length, TRANSFER_MAX, 'bytes') ??
      (await dispatch.run(caller, 'load', (current) => writeMemory(current, to, chunk)));
    if (refusal !== null) return refusal;
    at += BigInt(chunk.length);
    digest.update(chunk);
    stored += chunk.length;
  }
  return { ret: stored, sha256: digest.digest('hex') };
};

/** A failure says which range it is about. */
const inRange = <T>({ addr, length }: { addr: bigint | null; length: bigint | null }, result: Result<T>): Result<T> =>
  failed(result) ? result.with({ addr: `0x${(addr ?? 0n).toString(16)}`, length: String(length) }) : result;

/** The memory of a process: what its own instructions and system calls do with it. */
export const memoryRoutes: readonly Route[] = [
  unary(
    MemoryService.memfdCreate,
    method(
      'memfd_create',
      true,
      ret((current, { name, flags }, { kernel }) => memfdCreate(kernel, current, name, flags)),
    ),
  ),
  unary(
    MemoryService.mmap,
    method(
      'mmap',
      true,
      ret((current, { addr, length, prot, flags, fd, offset }) =>
        mmap(current, { address: addr, length: length ?? 0n, prot: prot ?? 0, flags: flags ?? 0, fd: fd ?? -1, offset }),
      ),
    ),
  ),
  unary(
    MemoryService.munmap,
    method(
      'munmap',
      true,
      ret((current, range) => inRange(range, munmap(current, range.addr ?? 0n, range.length ?? 0n))),
    ),
  ),
  unary(
    MemoryService.mprotect,
    method(
      'mprotect',
      true,
      ret((current, { prot, ...range }) => inRange(range, mprotect(current, range.addr ?? 0n, range.length ?? 0n, prot ?? 0))),
    ),
  ),
  unary(
    MemoryService.madvise,
    method(
      'madvise',
      true,
      ret((current, { advice, ...range }) => inRange(range, madvise(current, range.addr ?? 0n, range.length ?? 0n, advice ?? 0))),
    ),
  ),
  unary(
    MemoryService.read,
    method('load', false, (current, _host, { addr, length }) => {
      const refusal = overLimit('length', Number(length ?? 0n), TRANSFER_MAX, 'bytes');
      if (refusal !== null) return refused(refusal);
      return andThen(readMemory(current, addr ?? 0n, Number(length ?? 0n)), (result) => {
        const data = inRange({ addr, length }, result);
        return failed(data) ? refused(data) : reply({ ret: data.length, data, sha256: sha256(data) });
      });
    }),
  ),
  unary(
    MemoryService.write,
    method(
      'store',
      true,
      ret((current, request) => {
        const data = bytesOf(request);
        if (failed(data)) return data;
        const refusal = overLimit('data', data.length, TRANSFER_MAX, 'bytes');
        return (
          refusal ??
          inRange({ addr: request.addr, length: BigInt(data.length) }, writeMemory(current, request.addr ?? 0n, data)) ??
          data.length
        );
      }),
    ),
  ),
  clientStream(MemoryService.load, { role: 'process', syscall: 'store' }, load),
  serverStream(MemoryService.dump, { role: 'process', syscall: 'load' }, async (request, { dispatch, caller, send, signal }) => {
    const refusal = overLimit('chunk_bytes', request.chunk_bytes, TRANSFER_MAX, 'bytes');
    if (refusal !== null) return refusal;
    const size = BigInt(request.chunk_bytes === 0 ? CHUNK_DEFAULT : request.chunk_bytes);
    const digest = createHash('sha256');
    const end = (request.addr ?? 0n) + (request.length ?? 0n);
    let sequence = 0;
    for (let at = request.addr ?? 0n; at < end && !signal.aborted; at += size) {
      const length = Number(end - at < size ? end - at : size);
      const chunk = await dispatch.run(caller, 'load', (current) => readMemory(current, at, length), signal);
      if (failed(chunk)) return chunk;
      digest.update(chunk);
      await send({ sequence: ++sequence, chunk });
    }
    await send({ sequence: sequence + 1, sha256: digest.digest('hex') });
    return null;
  }),
];
