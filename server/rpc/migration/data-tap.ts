import type { OnReadOpts } from 'node:net';
import { Duplex } from 'node:stream';

/** The only stream of such a connection: a client's first. */
const STREAM = 1;
/** HTTP/2 receive window of the stream and of its connection, bytes. */
export const WINDOW_BYTES = 8 * 2 ** 20;
/** What is read from the network at once. */
const READ_BYTES = 256 * 2 ** 10;

/** Length, type, flags, stream (RFC 9113, 4.1). */
const HEAD_BYTES = 9;
/** SETTINGS_MAX_FRAME_SIZE as it is where nobody says anything else. */
const FRAME_MAX = 2 ** 14;
const TYPE = { data: 0, windowUpdate: 8 } as const;
const FLAG = { endStream: 1, padded: 8 } as const;
/** The highest bit of a stream's number means nothing. */
const STREAM_BITS = 2 ** 31 - 1;

const END_OF_STREAM: Uint8Array = Uint8Array.from([0, 0, 0, TYPE.data, FLAG.endStream, 0, 0, 0, STREAM]);

const windowUpdate = (stream: number, bytes: number): Buffer => {
  const frame = Buffer.from([0, 0, 4, TYPE.windowUpdate, 0, 0, 0, 0, stream, 0, 0, 0, 0]);
  frame.writeUInt32BE(bytes, HEAD_BYTES);
  return frame;
};

/**
 * A connection for node:http2 whose DATA does not go through it. From there each 16 KiB come as a copy, in a buffer and with events of
 * their own, which is more than half of what it takes to receive a guest. Here they are handed on where they have been read to. All the rest of
 * HTTP/2 is node:http2's, which gets every other frame and writes all that is written but the updates of the windows.
 */
export class DataTap extends Duplex {
  private readonly connection: Duplex;
  /** Of the frame that is being read. */
  private readonly head = Buffer.alloc(HEAD_BYTES);
  private headBytes = 0;
  private payloadLeft = 0;
  /** Bytes of DATA in it that are still to come, without the padding behind them; null: its first byte is to say. */
  private dataLeft: number | null = 0;
  /** It is DATA of the stream. */
  private isData = false;
  /** Bytes that the peer has not been told of that there is room for again. */
  private consumed = 0;
  private opened = false;
  /** What has come behind a response that nobody has looked at yet. */
  private early: Buffer | null = null;

  /**
   * @param connect opens the connection, which puts what it reads where it is told
   * @param received told of DATA from `begin` to `end`, whose memory is used again when it has returned
   */
  constructor(
    connect: (onread: OnReadOpts) => Duplex,
    private readonly received: (bytes: Buffer, begin: number, end: number) => void,
  ) {
    super();
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
    const connection = connect({ buffer, callback: (count) => this.arrived(buffer, count) });
    connection.on('error', (error) => this.destroy(error));
    connection.on('end', () => this.push(null));
    connection.on('close', () => this.destroy());
    this.connection = connection;
  }

  /** The response is one of gRPC: from now on there may be DATA. */
  open(): void {
    const { early } = this;
    this.opened = true;
    this.early = null;
    if (early !== null && this.parse(early, early.length)) this.connection.resume();
  }

  override _read(): void {
    if (this.early === null) this.connection.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.connection.write(chunk, callback);
  }

  /** node:http2 writes whole frames at once, so that there is room for others between what it writes. */
  override _writev(chunks: readonly { readonly chunk: Buffer }[], callback: (error?: Error | null) => void): void {
    const { connection } = this;
    connection.cork();
    for (const [index, { chunk }] of chunks.entries())
      connection.write(chunk, index === chunks.length - 1 ? callback : undefined);
    connection.uncork();
  }

  override _final(callback: () => void): void {
    this.connection.end(callback);
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.connection.destroy();
    callback(error);
  }

  /** @returns whether to go on reading, which a connection with TLS does for a while in any case */
  private arrived(bytes: Buffer, count: number): boolean {
    if (this.early === null) return this.parse(bytes, count);
    this.early = Buffer.concat([this.early, bytes.subarray(0, count)]);
    return false;
  }

  /** With TLS there are 64 of them for each MiB: a view of each part of each would cost more than what is done with it. */
  private parse(bytes: Buffer, count: number): boolean {
    let hasRoom = true;
    for (let at = 0; at < count && !this.destroyed; ) {
      if (this.headBytes < HEAD_BYTES) {
        this.head[this.headBytes++] = bytes[at++] ?? 0;
        if (this.headBytes === HEAD_BYTES) hasRoom = this.begin();
        continue;
      }
      if (this.isData && !this.opened) {
        this.early = Buffer.from(bytes.subarray(at, count));
        return false;
      }
      const end = Math.min(count, at + this.payloadLeft);
      this.payloadLeft -= end - at;
      if (this.isData) this.takeData(bytes, at, end);
      else hasRoom = this.push(Buffer.from(bytes.subarray(at, end)));
      at = end;
      if (this.payloadLeft === 0) this.endFrame();
    }
    return hasRoom;
  }

  /** The head of a frame is here. @returns whether node:http2 has room for more */
  private begin(): boolean {
    const { head } = this;
    this.payloadLeft = head.readUIntBE(0, 3);
    this.isData = head[3] === TYPE.data && (head.readUInt32BE(5) & STREAM_BITS) === STREAM;
    if (this.isData) this.beginData();
    const hasRoom = this.isData || this.push(Buffer.from(head));
    if (this.payloadLeft === 0) this.endFrame();
    return hasRoom;
  }

  private beginData(): void {
    const { payloadLeft } = this;
    this.dataLeft = this.has(FLAG.padded) ? null : payloadLeft;
    if (payloadLeft > FRAME_MAX) this.violated(`a frame of ${payloadLeft} bytes, where ${FRAME_MAX} are allowed`);
  }

  private takeData(bytes: Buffer, begin: number, end: number): void {
    this.consumed += end - begin;
    const padded = this.dataLeft === null;
    const dataLeft = this.dataLeft ?? this.withoutPadding(bytes[begin] ?? 0, end - begin);
    const from = padded ? begin + 1 : begin;
    const to = Math.min(end, from + dataLeft);
    this.dataLeft = dataLeft - (to - from);
    if (to > from) this.received(bytes, from, to);
    if (this.consumed >= WINDOW_BYTES / 2 && !this.destroyed) this.enlargeWindow();
  }

  /** @returns bytes of DATA in a frame that begins with how many bytes of padding it ends with, of which `here` bytes have come */
  private withoutPadding(padding: number, here: number): number {
    const dataLeft = this.payloadLeft + here - 1 - padding;
    if (dataLeft < 0) this.violated('more padding than the frame has bytes');
    return Math.max(0, dataLeft);
  }

  private enlargeWindow(): void {
    const { consumed } = this;
    this.connection.write(Buffer.concat([windowUpdate(0, consumed), windowUpdate(STREAM, consumed)]));
    this.consumed = 0;
  }

  private endFrame(): void {
    this.headBytes = 0;
    if (this.isData && this.has(FLAG.endStream)) this.push(END_OF_STREAM);
  }

  private has(flag: number): boolean {
    return ((this.head[4] ?? 0) & flag) !== 0;
  }

  private violated(what: string): void {
    this.destroy(new Error(`the peer does not keep to HTTP/2: ${what}`));
  }
}
