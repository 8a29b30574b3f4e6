/** Buffers that are kept: as many as there are messages of pages in a window. */
const KEPT_MAX = 32;

/**
 * Room for batches of pages, used over and over: memory that is new costs more than what is copied into it. Nobody clears
 * it, for all of it is written before anybody looks.
 */
export class BatchRoom {
  private readonly free: ArrayBufferLike[] = [];

  take(bytes: number): Uint8Array {
    const buffer = this.free.pop();
    if (buffer !== undefined && buffer.byteLength >= bytes) return new Uint8Array(buffer, 0, bytes);
    return new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer);
  }

  /** Nobody looks any more at what `take` gave. */
  giveBack(room: Uint8Array): void {
    if (this.free.length < KEPT_MAX) this.free.push(room.buffer);
  }
}
