import { MAP, PROT } from '../../server/kernel/uapi/mman.js';
import type { SystemCalls } from './system-calls.js';

const ARENA_BYTES = 4 * 2 ** 20;
const ALIGNMENT = 64n;

/**
 * Memory of the script's process in which one thread lays out the structures of its calls, as a C program does on its
 * stack. Everything is forgotten when the next op begins.
 */
export class Arena {
  private base: bigint | null = null;
  private used = 0n;

  constructor(private readonly calls: SystemCalls) {}

  reset(): void {
    this.used = 0n;
  }

  /** Writes `bytes` somewhere and returns the address. */
  async place(bytes: Uint8Array): Promise<bigint> {
    const address = await this.reserve(bytes.length);
    const stored = await this.calls.store(address, bytes);
    if (stored.errno !== null) throw new Error(`the executor's own memory cannot be written: ${stored.errno}`);
    return address;
  }

  async read(address: bigint, length: number): Promise<Uint8Array> {
    const loaded = await this.calls.load(address, length);
    if (loaded.errno !== null) throw new Error(`the executor's own memory cannot be read: ${loaded.errno}`);
    return loaded.data;
  }

  private async reserve(length: number): Promise<bigint> {
    if (length > ARENA_BYTES) return this.map(length);
    this.base ??= await this.map(ARENA_BYTES);
    const end = this.used + ((BigInt(length) + ALIGNMENT - 1n) / ALIGNMENT) * ALIGNMENT;
    if (end > BigInt(ARENA_BYTES)) return this.map(length);
    const address = this.base + this.used;
    this.used = end;
    return address;
  }

  private async map(length: number): Promise<bigint> {
    const mapped = await this.calls.mmap({
      length: BigInt(length),
      prot: PROT.READ | PROT.WRITE,
      flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.NORESERVE,
      fd: -1,
      offset: 0n,
    });
    if (mapped.errno !== null) throw new Error(`the executor has no memory of its own: ${mapped.errno}`);
    return mapped.ret;
  }
}
