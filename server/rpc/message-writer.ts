import type { Writable } from 'node:stream';
import { bytesOf, type Pieces } from './pieces.js';

/** Bytes before a message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message"). */
export const PREFIX_BYTES = 5;
/** Messages that wait for the network before there is no room for more. */
const UNSENT_MAX = 16;

/** What goes before a message of so many bytes that is not compressed. */
export const prefixOf = (length: number): Buffer => {
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.writeUInt32BE(length, 1);
  return prefix;
};

/** Writes the messages of a gRPC call to its stream of HTTP/2, from where they lie. */
export class MessageWriter {
  private unsent = 0;
  private isFull = false;

  /** @param drained told when there is room again after `write` has said that there is none */
  constructor(
    private readonly stream: Writable,
    private readonly drained: () => void,
  ) {}

  /**
   * @param sent called once nobody looks at the message's memory any more
   * @returns false: there is no room for more before `drained`
   */
  write(message: Pieces, sent: () => void = () => {}): boolean {
    const { stream } = this;
    this.unsent++;
    this.cork();
    stream.write(prefixOf(bytesOf(message)));
    for (const piece of message.slice(0, -1)) stream.write(piece);
    stream.write(message.at(-1) ?? Buffer.alloc(0), () => {
      this.unsent--;
      sent();
      this.mayDrain();
    });
    this.isFull ||= this.unsent >= UNSENT_MAX;
    return !this.isFull;
  }

  /** What is written in one turn goes out at once: HTTP/2 would let the second message wait until the first has been sent. */
  private cork(): void {
    const { stream } = this;
    if (stream.writableCorked > 0) return;
    stream.cork();
    process.nextTick(() => stream.uncork());
  }

  private mayDrain(): void {
    if (!this.isFull) return;
    this.isFull = false;
    this.drained();
  }
}
