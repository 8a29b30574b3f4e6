import { type Hpa, PAGE_SIZE, type Pfn, pfn, pfnToHpa } from './units.js';

/**
 * A key of the memory encryption engine, as the memory controller holds it for one ASID or HKID. `sealPage` and
 * `openPage` work in place on 4096 bytes; both are tweaked by the physical address.
 */
export interface MemoryKey {
  /** What a finding calls this key, for example `asid 3`. Never key material. */
  readonly name: string;
  sealPage(address: Hpa, bytes: Uint8Array): void;
  openPage(address: Hpa, bytes: Uint8Array): void;
}

/**
 * One 4 KiB frame of DRAM. The cells hold one definite string of bytes; `bytes` is that string as seen through
 * `key` (null: the cells themselves). Reading through another key converts `bytes` in place, which nobody outside can
 * tell from a DRAM that always holds ciphertext, and costs nothing while one party works alone.
 */
export class Frame {
  /** Incremented on every change of representation; whoever caches `bytes` with `key` compares it. */
  generation = 0;
  /** A CPU has decoded instructions from this frame since it was last written. */
  codeCached = false;
  /** Incremented by the first write after that; whoever holds decoded instructions compares it. */
  codeEpoch = 0;
  /** Key through which a cached, not yet written back line may be dirty, and the writeback epoch of that write. */
  private dirtyKey: MemoryKey | null = null;
  private dirtyEpoch = -1;

  constructor(
    readonly pfn: Pfn,
    private readonly dram: Dram,
  ) {}

  private sealed: MemoryKey | null = null;
  /** Null: never looked at, and zero. Many pages of the kernel's own are made for a VM that never runs. */
  private cells: Uint8Array | null = null;

  private get bytes(): Uint8Array {
    this.cells ??= this.dram.blankCells();
    return this.cells;
  }

  get key(): MemoryKey | null {
    return this.sealed;
  }

  get hpa(): Hpa {
    return pfnToHpa(this.pfn);
  }

  /** The frame's 4096 bytes as seen through `key` (null: the bare cells). Valid until somebody looks through another key. */
  view(key: MemoryKey | null): Uint8Array {
    if (key !== this.sealed) this.convert(key);
    return this.bytes;
  }

  /** Like `view`, and notes that lines of this frame are dirty in the cache under `key` until the next writeback. */
  viewForWrite(key: MemoryKey | null): Uint8Array {
    this.noteWrite();
    if (key !== null) {
      this.dirtyKey = key;
      this.dirtyEpoch = this.dram.writebackEpoch;
    }
    return this.view(key);
  }

  /** Like `view`, for a writer that bypasses the caches (the AMD secure processor): no line gets dirty. */
  viewForUncachedWrite(key: MemoryKey | null): Uint8Array {
    this.noteWrite();
    return this.view(key);
  }

  /** The key under which lines of this frame are dirty and have not been written back since, or null. */
  get dirtyUnder(): MemoryKey | null {
    return this.dirtyKey !== null && this.dirtyEpoch >= this.dram.cleanSince(this.dirtyKey) ? this.dirtyKey : null;
  }

  /** CLFLUSH of the whole frame. */
  flush(): void {
    this.dirtyKey = null;
  }

  /** Encrypts (or decrypts) in place: the bytes seen through `from` become the bytes seen through `to`. No line gets dirty. */
  retype(from: MemoryKey | null, to: MemoryKey | null): void {
    this.noteWrite();
    this.view(from);
    this.sealed = to;
    this.generation++;
  }

  /** Replaces all 4096 bytes, as seen through `key`, without a look at the old ones. No line gets dirty. */
  overwrite(key: MemoryKey | null, bytes: Uint8Array): void {
    this.noteWrite();
    this.bytes.set(bytes);
    this.sealed = key;
    this.generation++;
  }

  /**
   * Writes all 4096 bytes as the host does, in the clear. A frame that nobody has looked at yet takes them as its cells, so
   * that they are not copied: whoever gives them away keeps no other use of them.
   */
  adopt(bytes: Uint8Array): void {
    if (this.cells === null && this.sealed === null) this.cells = bytes;
    else this.viewForWrite(null).set(bytes);
  }

  private noteWrite(): void {
    if (this.codeCached) {
      this.codeCached = false;
      this.codeEpoch++;
    }
  }

  private convert(key: MemoryKey | null): void {
    if (this.sealed !== null) this.sealed.sealPage(this.hpa, this.bytes);
    if (key !== null) key.openPage(this.hpa, this.bytes);
    this.sealed = key;
    this.generation++;
  }
}

/** Cells of frames are made so many at a time: a buffer for each would cost more time than what is put into it. */
const SLAB_BYTES = 64 * PAGE_SIZE;

/**
 * The host's memory: frames with physical addresses, allocated when first touched, lowest free frame first so that
 * the same calls give the same addresses.
 */
export class Dram {
  /** Counts cache writebacks (WBINVD); see `Frame.dirtyUnder`. */
  writebackEpoch = 0;
  /** Epoch that the last writeback of every CPU began. */
  private allCleanSince = 0;
  /** Epochs that the last writeback of one guest's CPUs began. */
  private readonly keyCleanSince = new WeakMap<MemoryKey, number>();
  private readonly frames = new Map<Pfn, Frame>();
  private readonly freed: Pfn[] = [];
  private next: number;
  private slab = new ArrayBuffer(0);
  private slabUsed = SLAB_BYTES;

  /**
   * @param first page frame number of the first frame handed out (below it: firmware, kernel image)
   * @param total number of frames
   */
  constructor(
    private readonly first: number,
    readonly total: number,
  ) {
    this.next = first;
  }

  /** The page frame number that follows the last frame. */
  get end(): number {
    return this.first + this.total;
  }

  /** Frames in use. */
  get used(): number {
    return this.frames.size;
  }

  /** Allocates a zeroed frame, or null when memory is exhausted. */
  allocate(): Frame | null {
    const number = this.freed.pop() ?? (this.next < this.first + this.total ? pfn(this.next++) : undefined);
    if (number === undefined) return null;
    const frame = new Frame(number, this);
    this.frames.set(number, frame);
    return frame;
  }

  /** For `Frame` only: the cells of one that is looked at for the first time. */
  blankCells(): Uint8Array {
    if (this.slabUsed === SLAB_BYTES) {
      this.slab = new ArrayBuffer(SLAB_BYTES);
      this.slabUsed = 0;
    }
    this.slabUsed += PAGE_SIZE;
    return new Uint8Array(this.slab, this.slabUsed - PAGE_SIZE, PAGE_SIZE);
  }

  /** Returns a frame to the host. What its cells held is gone when it is allocated again: the kernel zeroes it. */
  free(frame: Frame): void {
    if (!this.frames.delete(frame.pfn)) throw new Error(`frame ${frame.pfn} freed twice`);
    this.freed.push(frame.pfn);
  }

  /** The frame at a page frame number, if it is in use. */
  at(number: Pfn): Frame | undefined {
    return this.frames.get(number);
  }

  /** Every frame in use, in order of allocation: what a reader on the memory bus can see. */
  all(): IterableIterator<Frame> {
    return this.frames.values();
  }

  /** WBINVD on every CPU: no line of any frame is dirty afterwards. */
  writebackAll(): void {
    this.allCleanSince = ++this.writebackEpoch;
  }

  /** WBINVD on every CPU on which a guest ran: no line is dirty under its key afterwards. */
  writebackLinesOf(key: MemoryKey): void {
    this.keyCleanSince.set(key, ++this.writebackEpoch);
  }

  /** For `Frame` only: the epoch from which on a write under `key` has not been written back. */
  cleanSince(key: MemoryKey): number {
    return Math.max(this.allCleanSince, this.keyCleanSince.get(key) ?? 0);
  }
}
