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

  private sealed: MemoryKey | null = null;

  constructor(
    readonly pfn: Pfn,
    private readonly dram: Dram,
    /** Null: never looked at, and zero. Many pages of the kernel's own are made for a VM that never runs. */
    private cells: Uint8Array | null = null,
  ) {}

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

/** Cells that no frame has, one behind the other, and that nobody else can know. */
interface SpareCells {
  readonly buffer: ArrayBuffer;
  readonly offset: number;
  bytes: number;
}

/** Bytes of cells that are kept for the next guest when one is gone: memory that is new costs more than what is put into it. */
const SPARE_MAX = 256 * 2 ** 20;

const BLOCK_FRAMES = 512;

/** Frames with numbers that follow each other. */
interface Block {
  /** Undefined: not in use. A buffer: in use, with its cells in there as they were stored, and nobody has asked for it since. */
  readonly frames: (Frame | ArrayBuffer | undefined)[];
  /** Where in its buffer the cells of such a frame begin. */
  readonly offsets: number[];
}

const createBlock = (): Block => ({
  frames: new Array<Frame | ArrayBuffer | undefined>(BLOCK_FRAMES).fill(undefined),
  offsets: new Array<number>(BLOCK_FRAMES).fill(0),
});

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
  private readonly blocks: Block[] = [];
  private inUse = 0;
  private kept = 0;
  private readonly freed: Pfn[] = [];
  private readonly spare: SpareCells[] = [];
  private spareBytes = 0;
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
    return this.inUse;
  }

  /** Frames that are free, and kept for those who have reserved them. */
  get reserved(): number {
    return this.kept;
  }

  /**
   * Keeps so many frames that are free for somebody who will allocate them later: nobody else can be given the last ones. False,
   * and nothing is kept: there are not so many.
   */
  reserve(frames: number): boolean {
    if (frames > this.available) return false;
    this.kept += frames;
    return true;
  }

  /** So many frames are kept no longer: they are not needed, or are about to be allocated. */
  unreserve(frames: number): void {
    if (frames > this.kept) throw new Error(`${frames} frames of ${this.kept} are unreserved`);
    this.kept -= frames;
  }

  /** Allocates a zeroed frame, or null when memory is exhausted. */
  allocate(): Frame | null {
    const number = this.take();
    if (number === null) return null;
    const frame = new Frame(number, this);
    this.blockOf(number).frames[this.indexOf(number)] = frame;
    return frame;
  }

  /**
   * Allocates a frame for each 4096 bytes, and puts them there. There are no objects for them before somebody asks for one.
   * Null when memory is exhausted.
   */
  store(bytes: Uint8Array): readonly Pfn[] | null {
    if (bytes.length > this.available * PAGE_SIZE) return null;
    const stored: Pfn[] = [];
    for (let done = 0; done < bytes.length; ) {
      const { buffer, offset, bytes: count } = this.takeCells(bytes.length - done);
      new Uint8Array(buffer, offset, count).set(bytes.subarray(done, done + count));
      for (let at = offset; at < offset + count; at += PAGE_SIZE) {
        const number = this.take();
        if (number === null) return null;
        const { frames, offsets } = this.blockOf(number);
        frames[this.indexOf(number)] = buffer;
        offsets[this.indexOf(number)] = at;
        stored.push(number);
      }
      done += count;
    }
    return stored;
  }

  /** Whether the cells of two frames that were stored lie behind one another, and nobody has asked for either. */
  adjoins(number: Pfn, next: Pfn): boolean {
    const [buffer, after] = [this.slotOf(number), this.slotOf(next)];
    return buffer === after && !(buffer instanceof Frame) && this.offsetOf(next) === this.offsetOf(number) + PAGE_SIZE;
  }

  /** The bytes that the host sees of a frame, and of those whose cells adjoin it. */
  contents(number: Pfn, frames: number): Uint8Array {
    const slot = this.slotOf(number);
    if (slot === undefined) throw new Error(`frame ${number} is not in use`);
    return slot instanceof Frame ? slot.view(null) : new Uint8Array(slot, this.offsetOf(number), frames * PAGE_SIZE);
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
    if (this.slotOf(frame.pfn) !== frame) throw new Error(`frame ${frame.pfn} freed twice`);
    this.release(frame.pfn);
  }

  /** The same by its number. */
  release(number: Pfn): void {
    const slot = this.slotOf(number);
    if (slot === undefined) throw new Error(`frame ${number} freed twice`);
    if (!(slot instanceof Frame)) this.keepCells(slot, this.offsetOf(number));
    this.blockOf(number).frames[this.indexOf(number)] = undefined;
    this.inUse--;
    this.freed.push(number);
  }

  /** The frame at a page frame number, if it is in use. */
  at(number: Pfn): Frame | undefined {
    const slot = this.slotOf(number);
    if (slot === undefined || slot instanceof Frame) return slot;
    const frame = new Frame(number, this, new Uint8Array(slot, this.offsetOf(number), PAGE_SIZE));
    this.blockOf(number).frames[this.indexOf(number)] = frame;
    return frame;
  }

  /** The frame at a page frame number, if it is in use and there is an object for it. */
  known(number: Pfn): Frame | undefined {
    const slot = this.slotOf(number);
    return slot instanceof Frame ? slot : undefined;
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

  /** Frames that anybody can have. */
  private get available(): number {
    return this.total - this.inUse - this.kept;
  }

  private take(): Pfn | null {
    if (this.available <= 0) return null;
    const number = this.freed.pop() ?? (this.next < this.end ? pfn(this.next++) : undefined);
    if (number === undefined) return null;
    this.inUse++;
    return number;
  }

  /** At most so many bytes of cells, one behind the other; what is in them is to be overwritten. */
  private takeCells(bytes: number): SpareCells {
    const last = this.spare.pop();
    // Not cleared, for it is overwritten.
    if (last === undefined) return { buffer: Buffer.allocUnsafeSlow(bytes).buffer, offset: 0, bytes };
    this.spareBytes -= Math.min(last.bytes, bytes);
    if (last.bytes <= bytes) return last;
    const { buffer, offset } = last;
    this.spare.push({ buffer, offset: offset + bytes, bytes: last.bytes - bytes });
    return { buffer, offset, bytes };
  }

  /** Keeps the cells of a frame that has never been more than a number, so that nobody can still hold them. */
  private keepCells(buffer: ArrayBuffer, offset: number): void {
    if (this.spareBytes >= SPARE_MAX) return;
    this.spareBytes += PAGE_SIZE;
    const last = this.spare.at(-1);
    if (last?.buffer === buffer && last.offset + last.bytes === offset) last.bytes += PAGE_SIZE;
    else this.spare.push({ buffer, offset, bytes: PAGE_SIZE });
  }

  private slotOf(number: Pfn): Frame | ArrayBuffer | undefined {
    return this.blocks[Math.floor((number - this.first) / BLOCK_FRAMES)]?.frames[this.indexOf(number)];
  }

  private offsetOf(number: Pfn): number {
    return this.blockOf(number).offsets[this.indexOf(number)] ?? 0;
  }

  private indexOf(number: Pfn): number {
    return (number - this.first) % BLOCK_FRAMES;
  }

  private blockOf(number: Pfn): Block {
    const index = Math.floor((number - this.first) / BLOCK_FRAMES);
    let block = this.blocks[index];
    if (block === undefined) {
      block = createBlock();
      this.blocks[index] = block;
    }
    return block;
  }
}
