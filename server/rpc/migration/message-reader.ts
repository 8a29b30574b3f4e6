import { status } from '@grpc/grpc-js';
import { PREFIX_BYTES } from '../message-writer.js';
import { type CallEnd, callEnd } from './call-end.js';

/**
 * Makes messages of what the network makes of them (gRPC over HTTP/2, "Length-Prefixed-Message"), in memory that is used again for
 * the next one.
 */
export class MessageReader {
  private readonly prefix = Buffer.alloc(PREFIX_BYTES);
  private prefixBytes = 0;
  /** Of the message whose prefix has come. */
  private length = 0;
  private bytes = 0;
  private memory = Buffer.alloc(0);

  /**
   * @param max bytes of a message
   * @param received told of each message, whose memory is somebody else's when it has returned. Not null: why it is none
   */
  constructor(
    private readonly max: number,
    private readonly received: (message: Buffer) => CallEnd | null,
  ) {}

  /** @returns why nothing more can be read */
  take(chunk: Buffer, begin = 0, end = chunk.length): CallEnd | null {
    for (let at = begin; at < end; ) {
      if (this.prefixBytes < PREFIX_BYTES) {
        while (this.prefixBytes < PREFIX_BYTES && at < end) this.prefix[this.prefixBytes++] = chunk[at++] ?? 0;
        if (this.prefixBytes < PREFIX_BYTES) return null;
        const refused = this.begin();
        if (refused !== null) return refused;
      }
      const count = Math.min(end - at, this.length - this.bytes);
      const message = this.put(chunk, at, count);
      at += count;
      if (message === null) return null;
      this.prefixBytes = 0;
      const refused = this.received(message);
      if (refused !== null) return refused;
    }
    return null;
  }

  private begin(): CallEnd | null {
    const { prefix, max } = this;
    this.length = prefix.readUInt32BE(1);
    this.bytes = 0;
    if (prefix[0] !== 0)
      return callEnd(status.UNIMPLEMENTED, 'a message has come that is compressed, which nobody has asked for');
    if (this.length <= max) return null;
    return callEnd(status.RESOURCE_EXHAUSTED, `a message of ${this.length} bytes has come; at most ${max} are allowed`);
  }

  /** @returns the message once it is whole: where it has come in one piece it is not copied */
  private put(chunk: Buffer, at: number, count: number): Buffer | null {
    if (count === this.length) return chunk.subarray(at, at + count);
    if (this.memory.length < this.length) this.memory = Buffer.allocUnsafeSlow(this.length);
    this.memory.set(new Uint8Array(chunk.buffer, chunk.byteOffset + at, count), this.bytes);
    this.bytes += count;
    return this.bytes === this.length ? this.memory.subarray(0, this.length) : null;
  }
}
