/** Memory of each end of the bare stream; what is pulled goes over it as often as is asked for. */
export const STORE_BYTES = 64 * 2 ** 20;

/** What is asked of a process with a bare stream. */
export interface FetchRequest {
  /** `host:port` of the other one. */
  readonly from: string;
  /** In all; whole messages. */
  readonly bytes: number;
  /** Of memory, in each message. */
  readonly messageBytes: number;
  /** HTTP/2 receive window of the one who pulls. */
  readonly window: number;
  /** `packets`: AES-128-CTR and HMAC-SHA-256 of each 4 KiB page; `seal`: AES-256-GCM of each message. Both ends do it. */
  readonly work: 'none' | 'packets' | 'seal';
}

const asIs = (bytes: Buffer): Buffer => bytes;

const method = <Streams extends boolean>(name: string, responseStream: Streams) => ({
  path: `/simkvm.bench.BareStream/${name}`,
  requestStream: false as const,
  responseStream,
  requestSerialize: (request: FetchRequest): Buffer => Buffer.from(JSON.stringify(request)),
  requestDeserialize: (bytes: Buffer): FetchRequest => JSON.parse(bytes.toString()),
  responseSerialize: asIs,
  responseDeserialize: asIs,
});

/** `pull`: the bytes themselves. `fetch`: pulls from another one, and answers when all has come. */
export const BARE_STREAM = { pull: method('Pull', true), fetch: method('Fetch', false) } as const;
