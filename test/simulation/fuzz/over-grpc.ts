import { Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { ProcessService, type RpcMethod, SERVICES } from '../../../gen/services.js';
import type { GrpcHost } from '../../conformance/grpc-host.js';
import { Random } from '../../differential/random.js';
import { type Request, requestFields, withField } from '../../helpers/message-fields.js';
import { fieldValue, type Surroundings } from './values.js';
import type { FuzzCall } from './world.js';

type Rpc = RpcMethod<object, Request, object, Request>;

const FDS = 16;
const DEADLINE_MS = 50;
/** Statuses of a daemon that did not know what it was doing. */
const NEVER: readonly number[] = [status.UNKNOWN, status.INTERNAL, status.UNAVAILABLE];
const APART: ReadonlySet<string> = new Set(['simkvm.v1.HostService', 'simkvm.v1.MigrationService', 'simkvm.v1.ProcessService']);

const METHODS: readonly Rpc[] = Object.values(SERVICES)
  .flatMap((service): Rpc[] => Object.values(service))
  .filter((rpc) => !rpc.requestStream && !rpc.responseStream && !APART.has(rpc.service));

const invoke = (client: Client, rpc: Rpc, request: Request, token: string, deadline: number): Promise<ServiceError | object> =>
  new Promise((resolve) => {
    const metadata = new Metadata();
    if (token !== '') metadata.set('simkvm-process', token);
    client.makeUnaryRequest(
      rpc.path,
      rpc.requestSerialize,
      rpc.responseDeserialize,
      request,
      metadata,
      { deadline },
      (error, response) => resolve(error ?? response ?? {}),
    );
  });

const isError = (answer: ServiceError | object): answer is ServiceError => 'code' in answer && 'metadata' in answer;

const tokenOf = (answer: object): string => ('token' in answer && typeof answer.token === 'string' ? answer.token : '');

/** What a list of calls by two processes has done to a daemon that it should not: nothing, if all is well. */
export const fuzzOverGrpc = async (host: GrpcHost, calls: readonly FuzzCall[]): Promise<string[]> => {
  const client = new Client(host.address, credentials.createInsecure());
  const soon = (ms: number): number => Date.now() + ms;
  const spawn = async (): Promise<string> => tokenOf(await invoke(client, ProcessService.spawn, {}, '', soon(10_000)));
  const tokens = [await spawn(), await spawn()];
  const openFds = Array.from({ length: FDS }, (_, fd) => fd);
  const around = (random: Random): Surroundings => ({
    openFds,
    likelyFd: random.below(FDS),
    memory: { address: 0x7f00_0000_0000n, length: 0x10000n },
    pids: [100],
  });
  const found: string[] = [];
  const callOne = async ({ process, seed }: FuzzCall): Promise<void> => {
    const random = new Random(seed);
    const rpc = random.pick(METHODS);
    let request: Request = {};
    for (const field of requestFields(rpc.path))
      if (random.chance(0.85)) request = withField(request, field.path, fieldValue(random, field, around(random)));
    const answer = await invoke(client, rpc, request, tokens[process % tokens.length] ?? '', soon(DEADLINE_MS));
    if (isError(answer) && NEVER.includes(answer.code)) found.push(`${rpc.path}: ${answer.message}`);
  };
  await Promise.all(calls.map(callOne));
  for (const token of tokens) await invoke(client, ProcessService.exit, { status: 0 }, token, soon(10_000));
  client.close();
  const oopses = host.kernel.findings.all.filter(({ kind }) => kind === 'KERNEL_OOPS' || kind === 'KMEM_LEAKED');
  return [
    ...found,
    ...oopses.map(({ kind, message }) => `${kind}: ${message}`),
    ...[...host.kernel.vms.values()].map((vm) => `VM ${vm.id} is left`),
  ];
};
