import { Client, type ClientReadableStream, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '../../gen/messages.js';
import { HostService, type RpcMethod } from '../../gen/services.js';

/** The end of a call as a client without the SDK sees it. */
export interface Outcome<Res> {
  readonly code: status;
  readonly message: string;
  readonly response: Res | null;
  /** ErrorInfo of a failure. */
  readonly reason: string;
  readonly errno: string;
  readonly metadata: Readonly<Record<string, string>>;
}

const DEADLINE_MS = 20_000;
const NO_INFO: Pick<ErrorInfo, 'reason' | 'metadata'> = { reason: '', metadata: {} };

/** What a failed call's status says. */
const failure = <Res>(
  rpc: { responseTypeUrl: string; responseType: { decode(bytes: Uint8Array): Res } },
  error: ServiceError,
): Outcome<Res> => {
  const [details] = error.metadata.get('grpc-status-details-bin');
  const any = details === undefined ? [] : Status.decode(Buffer.from(details)).details;
  const info = any.find(({ type_url }) => type_url.endsWith('google.rpc.ErrorInfo'));
  const answer = any.find(({ type_url }) => type_url === rpc.responseTypeUrl);
  const { reason, metadata } = info === undefined ? NO_INFO : ErrorInfo.decode(info.value);
  return {
    code: error.code,
    message: error.details,
    response: answer === undefined ? null : rpc.responseType.decode(answer.value),
    reason,
    errno: metadata.errno ?? '',
    metadata,
  };
};

/** gRPC as any client speaks it: the generated codec and nothing else. */
export class RawClient implements Disposable {
  private readonly client: Client;

  constructor(address: string) {
    this.client = new Client(address, credentials.createInsecure());
  }

  call<Req, ReqInit, Res, ResInit>(
    rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Outcome<Res>> {
    return this.start(rpc, request, headers).outcome;
  }

  /** Like `call`, with the means to cancel. */
  start<Req, ReqInit, Res, ResInit>(
    rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
    headers: Readonly<Record<string, string>> = {},
  ) {
    let cancel = (): void => {};
    const outcome = new Promise<Outcome<Res>>((resolve) => {
      const call = this.client.makeUnaryRequest(
        rpc.path,
        rpc.requestSerialize,
        rpc.responseDeserialize,
        request,
        metadataOf(headers),
        { deadline: Date.now() + DEADLINE_MS },
        (error, response) =>
          resolve(
            error === null
              ? { code: status.OK, message: '', response: response ?? null, reason: '', errno: '', metadata: {} }
              : failure(rpc, error),
          ),
      );
      cancel = () => call.cancel();
    });
    return { outcome, cancel };
  }

  stream<Req, ReqInit, Res, ResInit>(
    rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
    headers: Readonly<Record<string, string>> = {},
  ): ClientReadableStream<Res> {
    return this.client.makeServerStreamRequest(
      rpc.path,
      rpc.requestSerialize,
      rpc.responseDeserialize,
      request,
      metadataOf(headers),
    );
  }

  /** Kernel memory, VMs and firmware contexts that the host still has. */
  async leftovers(): Promise<{ kmem: bigint; vms: number; contexts: number; findings: bigint }> {
    const { response } = await this.call(HostService.getHost, {});
    const host = response?.host;
    if (host === null || host === undefined) throw new Error('the host does not answer');
    const kmem = host.kmem.reduce((sum, { reachable_bytes, charged_bytes }) => sum + reachable_bytes + charged_bytes, 0n);
    return { kmem, vms: host.vms, contexts: host.sev?.guest_count ?? 0, findings: host.findings };
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}

const metadataOf = (headers: Readonly<Record<string, string>>): Metadata => {
  const metadata = new Metadata();
  for (const [key, value] of Object.entries(headers)) metadata.set(key, value);
  return metadata;
};
