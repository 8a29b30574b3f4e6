import type { DumpResponse, Int64Init, LoadRequestInit, LoadResponse, MemoryServiceReadResponse } from '../gen/messages.js';
import { MemoryService } from '../gen/services.js';
import type { Caller } from './call.js';
import { File } from './file.js';
import { withForms } from './forms.js';
import { handleOf } from './handle.js';
import { type CallingObject, type FdObject, outcomeOf, ret, type Syscall, syscall } from './syscall.js';
import { MAP, PROT } from './uapi.js';

/** Bytes of a message of Load: large messages are what makes a stream fast. */
const CHUNK_BYTES = 512 * 2 ** 10;

/** What mmap(2) is told. */
export interface MmapOptions {
  /** Bytes. */
  readonly length: Int64Init;
  /** Bits of PROT. @default PROT.READ | PROT.WRITE */
  readonly prot?: number;
  /** Bits of MAP. @default MAP.SHARED with a file, else MAP.PRIVATE | MAP.ANONYMOUS */
  readonly flags?: number;
  /** The file, or its descriptor. @default none: anonymous memory */
  readonly fd?: FdObject | number;
  /** Bytes into the file, page aligned. @default 0 */
  readonly offset?: Int64Init;
  /** A hint, or with MAP.FIXED the address. @default the kernel chooses */
  readonly addr?: Int64Init;
}

const mmapRequest = (_self: CallingObject, { length, prot, flags, fd, offset, addr }: MmapOptions) => ({
  addr,
  length,
  prot: prot ?? PROT.READ | PROT.WRITE,
  flags: flags ?? (fd === undefined ? MAP.PRIVATE | MAP.ANONYMOUS : MAP.SHARED),
  fd: typeof fd === 'object' ? fd.fd : fd,
  offset,
});

async function* loadRequests(
  addr: Int64Init,
  data: Uint8Array | AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncIterable<LoadRequestInit> {
  yield { addr };
  for await (const part of data instanceof Uint8Array ? [data] : data)
    for (let begin = 0; begin < part.length; begin += CHUNK_BYTES) yield { chunk: part.subarray(begin, begin + CHUNK_BYTES) };
}

/** What Load answers. */
export interface Loaded {
  /** Bytes stored. */
  readonly bytes: number;
  /** SHA-256 of them, lower-case hexadecimal. */
  readonly sha256: string;
}

const load: Syscall<
  CallingObject,
  [addr: Int64Init, data: Uint8Array | AsyncIterable<Uint8Array> | Iterable<Uint8Array>],
  Loaded
> = async (self, addr, data) => {
  const reply = await self.caller.clientStream(MemoryService.load, loadRequests(addr, data));
  return outcomeOf(reply, (response: LoadResponse) => ({ bytes: ret(response), sha256: response.sha256 }));
};

/** The system calls on an address space. Addresses are the process's own. */
export const memoryCalls = {
  /**
   * memfd_create(2).
   * Errno: EINVAL (flags, length of the name), EMFILE, ENOMEM.
   * @param flags bits of MFD
   */
  memfdCreate: syscall(
    MemoryService.memfdCreate,
    (_self: CallingObject, name: string, flags: number = 0) => ({ name, flags }),
    handleOf(File),
  ),
  /**
   * mmap(2): the address.
   * Errno: EINVAL (length, alignment, flags), ENOMEM, EBADF, ENODEV (file cannot be mapped), EACCES, EEXIST, EPERM, EOVERFLOW.
   */
  mmap: syscall(MemoryService.mmap, mmapRequest, (response) => response.ret),
  /**
   * munmap(2); memory slots over the range stay, and are empty.
   * Errno: EINVAL (alignment, length 0), ENOMEM.
   */
  munmap: syscall(MemoryService.munmap, (_self: CallingObject, addr: Int64Init, length: Int64Init) => ({ addr, length }), ret),
  /**
   * mprotect(2).
   * Errno: EINVAL (alignment, prot), ENOMEM (a hole in the range), EACCES.
   * @param prot bits of PROT
   */
  mprotect: syscall(
    MemoryService.mprotect,
    (_self: CallingObject, addr: Int64Init, length: Int64Init, prot: number) => ({ addr, length, prot }),
    ret,
  ),
  /**
   * madvise(2).
   * Errno: EINVAL (alignment, advice), ENOMEM (a hole in the range), EBADF, EACCES.
   * @param advice one of MADV
   */
  madvise: syscall(
    MemoryService.madvise,
    (_self: CallingObject, addr: Int64Init, length: Int64Init, advice: number) => ({ addr, length, advice }),
    ret,
  ),
  /**
   * Loads bytes as an instruction of the process would; encrypted guest memory reads as ciphertext.
   * Errno: EFAULT (not mapped, not readable).
   * @param length at most 1 MiB; `dump` takes more
   */
  read: syscall(
    MemoryService.read,
    (_self: CallingObject, addr: Int64Init, length: Int64Init) => ({ addr, length }),
    ({ data }: MemoryServiceReadResponse) => data,
  ),
  /**
   * Stores bytes as an instruction of the process would; the value is their number.
   * Errno: EFAULT (not mapped, not writable).
   * @param data at most 1 MiB; a string is stored in UTF-8; `load` takes more
   */
  write: syscall(
    MemoryService.write,
    (_self: CallingObject, addr: Int64Init, data: Uint8Array | string) =>
      typeof data === 'string' ? { addr, utf8: data } : { addr, raw: data },
    ret,
  ),
  /** memset(3). Errno: EFAULT (not mapped, not writable). */
  fill: syscall(
    MemoryService.write,
    (_self: CallingObject, addr: Int64Init, fillByte: number, length: Int64Init) => ({ addr, fill_byte: fillByte, length }),
    ret,
  ),
  /**
   * Stores any number of bytes, as a stream. What was stored before a failure stays.
   * Errno: EFAULT (not mapped, not writable).
   */
  load,
} as const;

class AddressSpace implements CallingObject {
  constructor(readonly caller: Caller) {}
}

/**
 * The address space of a process: `process.memory`.
 *
 * @example
 * ```ts
 * await using ram = await process.memory.memfdCreate('ram');
 * await ram.ftruncate(0x10_0000);
 * const addr = await process.memory.mmap({ fd: ram, length: 0x10_0000 });
 * await process.memory.write(addr, Uint8Array.of(0xf4)); // HLT
 * ```
 */
export class Memory extends withForms(AddressSpace, memoryCalls) {
  /**
   * Loads any number of bytes, as a stream of chunks in order; the last one has the digest of all.
   * @throws KvmError EFAULT (not mapped, not readable)
   */
  dump(addr: Int64Init, length: Int64Init): AsyncIterable<DumpResponse> {
    return this.caller.serverStream(MemoryService.dump, { addr, length });
  }
}
