/** Buffers that are kept: as many as there are messages of pages in a window. */
const KEPT_MAX = 32;

/** Memory of a batch of pages, which is used again once nobody looks at it. */
export class BatchMemory {
  readonly bytes: Uint8Array;
  private users = 1;

  constructor(
    private readonly buffer: ArrayBufferLike,
    length: number,
    private readonly unused: (buffer: ArrayBufferLike) => void,
  ) {
    this.bytes = new Uint8Array(buffer, 0, length);
  }

  /** One more looks at it. */
  hold(): void {
    this.users++;
  }

  /** One less. */
  release(): void {
    this.users--;
    if (this.users === 0) this.unused(this.buffer);
  }
}

/**
 * Room for batches of pages, used over and over: memory that is new costs more than what is copied into it. Nobody clears
 * it, for all of it is written before anybody looks.
 */
export class BatchRoom {
  private readonly free: ArrayBufferLike[] = [];

  /** Memory with one user. */
  take(bytes: number): BatchMemory {
    const kept = this.free.pop();
    const fits = kept !== undefined && kept.byteLength >= bytes;
    return new BatchMemory(fits ? kept : Buffer.allocUnsafeSlow(bytes).buffer, bytes, this.giveBack);
  }

  private readonly giveBack = (buffer: ArrayBufferLike): void => {
    if (this.free.length < KEPT_MAX) this.free.push(buffer);
  };
}
