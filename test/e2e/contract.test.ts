import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SERVICES } from '../../gen/services.js';
import { routes } from '../../server/rpc/server.js';
import { bufCurl } from '../helpers/buf-curl.js';
import { startTestDaemon, type TestDaemon } from '../helpers/daemon.js';
import { reflectedFile } from '../helpers/reflection.js';

const rpcs = Object.values(SERVICES).flatMap((service) => Object.values(service));

describe('every RPC of the contract', () => {
  const served = new Map(routes().map((route) => [`/${route.service}/${route.name}`, route]));

  it('is served, and nothing else is', () => {
    expect([...served.keys()].sort()).toEqual(rpcs.map(({ path }) => path).sort());
  });

  it('says who may call it', () => {
    for (const [path, { role }] of served) expect(['anyone', 'process', 'operator'], path).toContain(role);
  });
});

describe('a daemon, asked with reflection alone', () => {
  let daemon: TestDaemon;
  beforeAll(async () => {
    daemon = await startTestDaemon();
  });
  afterAll(() => daemon[Symbol.asyncDispose]());

  it('lists its services, health and channelz', async () => {
    const listed = await bufCurl(daemon.address, '--list-services');
    const expected = [
      ...Object.keys(SERVICES).map((name) => `simkvm.v1.${name}`),
      'grpc.health.v1.Health',
      'grpc.channelz.v1.Channelz',
    ];
    expect(listed.trim().split('\n').sort()).toEqual(expected.sort());
  });

  it('answers a call that names fields and enums', async () => {
    const opened = await bufCurl(daemon.address, 'simkvm.v1.FileService/Open', '{"path":"/dev/kvm","flags":2}');
    expect(JSON.parse(opened)).toEqual({ ret: '3' });
    const version = await bufCurl(daemon.address, 'simkvm.v1.KvmSystem/GetApiVersion', '{"fd":3}');
    expect(JSON.parse(version)).toEqual({ ret: '12' });
  });

  it('is healthy', async () => {
    expect(JSON.parse(await bufCurl(daemon.address, 'grpc.health.v1.Health/Check', '{}'))).toEqual({ status: 'SERVING' });
  });

  it('tells channelz about itself', async () => {
    const { server } = JSON.parse(await bufCurl(daemon.address, 'grpc.channelz.v1.Channelz/GetServers', '{}'));
    expect(server).toHaveLength(1);
  });

  it('gives the comments of the contract over the wire', async () => {
    const file = await reflectedFile(daemon.address, 'simkvm.v1.KvmVm');
    const comments = file.sourceCodeInfo.location.map(({ leadingComments }) => leadingComments ?? '');
    expect(comments.some((comment) => comment.includes('KVM_IOEVENTFD') && comment.includes('grpcurl'))).toBe(true);
  });

  it('refuses with the reason, the errno and the field', async () => {
    const refused = await bufCurl(daemon.address, 'simkvm.v1.KvmVm/SetUserMemoryRegion', '{"fd":3}').catch(
      (error: Error) => error.message,
    );
    expect(refused).toContain('FIELD_MISSING');
    expect(refused).toContain('region');
  });
});
