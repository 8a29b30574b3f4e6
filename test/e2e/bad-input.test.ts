import { status } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { missingField } from '../../gen/required.js';
import {
  EventFdService,
  FileService,
  HostService,
  KvmSystem,
  KvmVm,
  MemoryService,
  ProcessService,
  type RpcMethod,
  SERVICES,
} from '../../gen/services.js';
import { ERRNO } from '../../server/kernel/errno.js';
import { startTestDaemon, type TestDaemon } from '../helpers/daemon.js';
import { hasField, type Request, type RequestField, requestFields, withField } from '../helpers/message-fields.js';
import { type Outcome, RawClient } from '../helpers/raw-client.js';

type Rpc = RpcMethod<object, Request, object, Request>;

/** Codes that would mean that the daemon did not know what it was doing. */
const NEVER = [status.UNKNOWN, status.INTERNAL, status.UNAVAILABLE, status.DEADLINE_EXCEEDED];

const INTEGERS: Readonly<Record<string, readonly (number | bigint)[]>> = {
  int32: [-1, 1, 2 ** 31 - 1, -(2 ** 31)],
  uint32: [1, 3, 2 ** 31, 2 ** 32 - 1],
  int64: [-1n, 1n, 2n ** 63n - 1n, -(2n ** 63n)],
  uint64: [1n, 4095n, 2n ** 52n, 2n ** 63n, 2n ** 64n - 1n],
  enum: [1, 7777, 2 ** 31 - 1],
  bool: [],
};
const BYTES = [new Uint8Array(1), new Uint8Array(100_000).fill(0xff)];
const STRINGS = ['', '\u0000', 'x'.repeat(10_000)];

/** One descriptor of each kind in a process of its own. */
interface World {
  readonly headers: Readonly<Record<string, string>>;
  readonly fds: Readonly<Record<string, number>>;
}

const makeWorld = async (client: RawClient): Promise<World> => {
  const spawned = await client.call(ProcessService.spawn, {});
  const headers = { 'simkvm-process': spawned.response?.token ?? '' };
  const fd = async <Req, ReqInit>(rpc: RpcMethod<Req, ReqInit, { ret: bigint }, object>, request: ReqInit): Promise<number> => {
    const { code, message, response } = await client.call(rpc, request, headers);
    if (code !== status.OK || response === null) throw new Error(message);
    return Number(response.ret);
  };
  const kvm = await fd(FileService.open, { path: '/dev/kvm', flags: 2 });
  const vm = await fd(KvmSystem.createVm, { fd: kvm, type: 0 });
  const sev = await fd(FileService.open, { path: '/dev/sev', flags: 2 });
  const eventfd = await fd(EventFdService.create, { flags: 0x800 });
  const memfd = await fd(MemoryService.memfdCreate, { name: 'm' });
  const vcpu = await fd(KvmVm.createVcpu, { fd: vm, id: 0n });
  const gmem = await fd(KvmVm.createGuestMemfd, { fd: vm, guest_memfd: { size: 65_536n } });
  return { headers, fds: { kvm, vm, vcpu, sev, eventfd, memfd, gmem } };
};

/** The kind of descriptor that a service's methods are for. */
const KIND: Readonly<Record<string, string>> = {
  KvmSystem: 'kvm',
  KvmVm: 'vm',
  KvmVcpu: 'vcpu',
  SevPlatform: 'sev',
  EventFdService: 'eventfd',
};

const isFd = ({ path, type }: RequestField): boolean => type === 'int32' && /fd$/.test(path.at(-1)?.name ?? '');

/** A request that misses nothing: zero wherever something has to be, and the right kind of descriptor. */
const plausible = (rpc: Rpc, fields: readonly RequestField[], world: World): Request => {
  const kind = KIND[rpc.service.split('.').at(-1) ?? ''] ?? 'memfd';
  const zero = (field: RequestField): unknown => {
    if (isFd(field)) return world.fds[field.label === 'fd' ? kind : 'eventfd'];
    if (field.type === 'string') return '';
    if (field.type === 'bytes') return new Uint8Array(0);
    return field.type.endsWith('64') ? 0n : 0;
  };
  const missing = (request: Request): string | null =>
    missingField(rpc.path, rpc.requestDeserialize(rpc.requestSerialize(request)));
  let request: Request = {};
  for (let label = missing(request); label !== null; label = missing(request)) {
    const name = label.replace(/\[\d+\]/g, '');
    const field =
      fields.find((one) => one.label === name || one.oneof === name) ?? fields.find((one) => one.label.startsWith(`${name}.`));
    if (field === undefined) throw new Error(`${rpc.path}: no field ${label}`);
    request = withField(request, field.path, zero(field));
  }
  return request;
};

const badValues = (field: RequestField, { fds }: World): unknown[] => {
  // Any other value of it is a wait, and no mistake.
  if (field.label === 'timeout_ms') return [undefined];
  if (field.type === 'bytes') return [undefined, ...BYTES];
  if (field.type === 'string') return [undefined, ...STRINGS];
  return [undefined, ...(INTEGERS[field.type] ?? []), ...(isFd(field) ? [99_999, ...Object.values(fds)] : [])];
};

/** Methods that wait for something, or end the process that calls them. */
const APART: ReadonlySet<unknown> = new Set([ProcessService.exit, HostService.reset]);

const unary: Rpc[] = Object.values(SERVICES)
  .flatMap((service): Rpc[] => Object.values(service))
  .filter((rpc) => !rpc.requestStream && !rpc.responseStream && !APART.has(rpc));

describe('a request with one bad field', () => {
  let daemon: TestDaemon;
  let client: RawClient;
  beforeAll(async () => {
    daemon = await startTestDaemon();
    client = new RawClient(daemon.address);
  });
  afterAll(async () => {
    client[Symbol.dispose]();
    await daemon[Symbol.asyncDispose]();
  });

  const check = (rpc: Rpc, field: RequestField, value: unknown, outcome: Outcome<object>): void => {
    const what = `${rpc.path} with ${field.label} = ${String(value).slice(0, 40)}: ${outcome.message}`;
    expect(NEVER, what).not.toContain(outcome.code);
    if (outcome.code === status.OK) return;
    expect(Object.keys(ERRNO), what).toContain(outcome.errno);
    expect(outcome.reason, what).toMatch(/^[A-Z][A-Z0-9_]+$/);
    expect(outcome.message, what).toContain(outcome.errno);
  };

  it.each(unary.map((rpc) => [rpc.path, rpc] as const))('%s', async (_path, rpc) => {
    const fields = requestFields(rpc.path);
    const world = await makeWorld(client);
    const base = plausible(rpc, fields, world);
    const refusedAnyway = await client.call(rpc, base, world.headers);
    for (const field of fields) {
      for (const value of badValues(field, world)) {
        if (value === undefined && !hasField(base, field.path)) continue;
        const outcome = await client.call(rpc, withField(base, field.path, value), world.headers);
        check(rpc, field, value, outcome);
        if (value === undefined && outcome.reason === 'FIELD_MISSING')
          expect(outcome.message).toMatch(new RegExp(`\\b(${field.path.at(-1)?.name}|${field.oneof ?? 'no oneof'})\\b`));
        else if (outcome.code !== status.OK && outcome.reason !== refusedAnyway.reason)
          expect(namesField(outcome, fields), `${rpc.path}: '${outcome.message}' does not name ${field.label}`).toBe(true);
      }
    }
    await client.call(ProcessService.exit, {}, world.headers);
  });

  it('leaves the daemon as it was: nothing held, nothing found', async () => {
    await expect.poll(() => client.leftovers()).toEqual({ kmem: 0n, vms: 0, contexts: 0, findings: 0n });
  });
});

/** Whether the refusal says which field of the request is to blame: the one that was changed, or one that it has to fit. */
const namesField = ({ message, metadata }: Outcome<object>, fields: readonly RequestField[]): boolean =>
  fields.some(({ path, oneof }) =>
    [...path.map(({ name }) => name), oneof ?? ''].some(
      (name) => name !== '' && (metadata.field === name || new RegExp(`\\b${name}\\b`).test(message)),
    ),
  );
