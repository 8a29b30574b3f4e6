import { type ChildProcess, spawn } from 'node:child_process';
import { array, s32, s64, struct, u32, u64 } from '../../../server/kernel/uapi/struct.js';
import { buildSystemCallServer } from './build.js';

/** What a request asks for: `enum` of system-call-server.c. */
export const CALL = { SYSCALL: 0, LOAD: 1, STORE: 2, SIGNAL: 3, FORK: 4, EXIT: 5 } as const;

const request = struct('request', 88, {
  tag: u32(0),
  thread: u32(4),
  call: u32(8),
  flags: u32(12),
  number: u64(16),
  args: array(u64, 24, 6),
  pointer: u32(72),
  in: u32(76),
  out: u32(80),
});

const reply = struct('reply', 24, { tag: u32(0), bytes: u32(4), ret: s64(8), error: s32(16), signal: u32(20) });

const FLAG_BLOCKING = 1;
const CHILD_ENDED = 0xffff_ffff;
const NO_BYTES = new Uint8Array(0);

export interface NativeRequest {
  readonly call: number;
  readonly thread: number;
  /** Served by the thread itself, and not by the one that reads the requests. */
  readonly blocking: boolean;
  readonly number?: number;
  readonly args?: readonly bigint[];
  /** Bytes that the call reads, and how many it may write; `pointer` is 1 + index of the argument that is their address. */
  readonly pointer?: number;
  readonly bytes?: Uint8Array;
  readonly out?: number;
}

export interface NativeReply {
  readonly ret: bigint;
  /** errno, or 0. */
  readonly error: number;
  /** Signal that a touch of memory raised, or 0. */
  readonly signal: number;
  readonly bytes: Uint8Array;
}

interface Waiting {
  resolve(reply: NativeReply): void;
  reject(error: Error): void;
}

/** The other program, and the requests that it has not answered. */
export class Channel {
  private readonly program: ChildProcess;
  private readonly waiting = new Map<number, Waiting>();
  /** Who waits for the end of each child, the youngest last. */
  private readonly children: Waiting[] = [];
  private tag = 0;
  private received: Uint8Array = NO_BYTES;

  constructor() {
    this.program = spawn(buildSystemCallServer(), { stdio: ['pipe', 'pipe', 'inherit'] });
    this.program.stdout?.on('data', (chunk: Buffer) => this.receive(chunk));
    this.program.once('exit', (code, signal) => this.fail(new Error(`the system call server ended: ${code ?? signal}`)));
  }

  request(asked: NativeRequest): Promise<NativeReply> {
    return new Promise((resolve, reject) => {
      this.waiting.set(this.send(asked), { resolve, reject });
    });
  }

  /** Ends the youngest child; kept when its parent has seen it end. */
  endChild(): Promise<NativeReply> {
    return new Promise((resolve, reject) => {
      this.children.push({ resolve, reject });
      this.send({ call: CALL.EXIT, thread: 0, blocking: false });
    });
  }

  close(): void {
    this.program.removeAllListeners('exit');
    this.program.stdin?.end();
  }

  private send(asked: NativeRequest): number {
    const bytes = asked.bytes ?? NO_BYTES;
    this.tag = (this.tag + 1) % CHILD_ENDED;
    const message = new Uint8Array(request.size + bytes.length);
    request.write(message, {
      tag: this.tag,
      thread: asked.thread,
      call: asked.call,
      flags: asked.blocking ? FLAG_BLOCKING : 0,
      number: BigInt(asked.number ?? 0),
      args: [...(asked.args ?? [])],
      pointer: asked.pointer ?? 0,
      in: bytes.length,
      out: asked.out ?? 0,
    });
    message.set(bytes, request.size);
    this.program.stdin?.write(message);
    return this.tag;
  }

  private receive(chunk: Uint8Array): void {
    const data = this.received.length === 0 ? chunk : Buffer.concat([this.received, chunk]);
    let at = 0;
    while (at + reply.size <= data.length) {
      const head = reply.decode(data, at);
      const end = at + reply.size + head.bytes;
      if (end > data.length) break;
      this.deliver(head.tag, { ...head, bytes: data.slice(at + reply.size, end) });
      at = end;
    }
    this.received = data.subarray(at);
  }

  private deliver(tag: number, answer: NativeReply): void {
    if (tag === CHILD_ENDED) {
      this.childEnded(answer);
      return;
    }
    this.waiting.get(tag)?.resolve(answer);
    this.waiting.delete(tag);
  }

  private childEnded(answer: NativeReply): void {
    const waiting = this.children.pop();
    if (waiting !== undefined) waiting.resolve(answer);
    else this.fail(new Error(`a process on the real kernel ended by itself: ${answer.ret}`));
  }

  private fail(error: Error): void {
    for (const waiting of [...this.waiting.values(), ...this.children]) waiting.reject(error);
    this.waiting.clear();
    this.children.length = 0;
  }
}
