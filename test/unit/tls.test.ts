import {
  type ChannelCredentials,
  Client,
  Server,
  type ServerUnaryCall,
  type ServiceError,
  type sendUnaryData,
  status,
} from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { listen } from '../../server/rpc/server.js';
import { certificateFingerprint, loadTls, type TlsOptions } from '../../server/tls.js';
import { Authority } from '../certificates.js';

const ECHO = {
  path: '/test/Echo',
  requestStream: false,
  responseStream: false,
  requestSerialize: (bytes: Buffer) => bytes,
  requestDeserialize: (bytes: Buffer) => bytes,
  responseSerialize: (bytes: Buffer) => bytes,
  responseDeserialize: (bytes: Buffer) => bytes,
} as const;

const authority = new Authority();
const stranger = new Authority();
const [here, there] = [authority.certify('here'), authority.certify('there')];

let server: Server;
let target: string;
/** Who the server saw. */
let caller: string | null = null;

const options = (files: Omit<TlsOptions, 'peers'>, peers: readonly string[] = []): TlsOptions => ({ ...files, peers });

beforeAll(async () => {
  server = new Server();
  const echo = (call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>): void => {
    const { sslPeerCertificate: certificate } = call.getAuthContext() ?? {};
    caller = certificate === undefined ? null : certificateFingerprint(certificate);
    done(null, call.request);
  };
  server.addService({ echo: ECHO }, { echo });
  target = `localhost:${await listen(server, 'localhost:0', loadTls(options(here)).server)}`;
});

afterAll(() => {
  server.forceShutdown();
  authority[Symbol.dispose]();
  stranger[Symbol.dispose]();
});

const call = (credentials: ChannelCredentials): Promise<status> =>
  new Promise((resolve) => {
    const client = new Client(target, credentials);
    const { requestSerialize, responseDeserialize } = ECHO;
    client.makeUnaryRequest(ECHO.path, requestSerialize, responseDeserialize, Buffer.of(1), (error: ServiceError | null) => {
      client.close();
      resolve(error?.code ?? status.OK);
    });
  });

describe('mutual TLS', () => {
  it('lets in whom the authority vouches for, and tells who that is', async () => {
    expect(await call(loadTls(options(there)).client.channel)).toBe(status.OK);
    expect(caller).toBe(there.fingerprint);
  });

  it('lets nobody else in', async () => {
    expect(await call(loadTls({ ...options(stranger.certify('mallory')), ca: here.ca }).client.channel)).toBe(status.UNAVAILABLE);
  });

  it('does not call a daemon for which no authority vouches', async () => {
    expect(await call(loadTls({ ...options(there), ca: stranger.certify('other').ca }).client.channel)).toBe(status.UNAVAILABLE);
  });

  it('calls only the daemons that are listed, where some are', async () => {
    expect(await call(loadTls(options(there, [here.fingerprint])).client.channel)).toBe(status.OK);
    expect(await call(loadTls(options(there, [there.fingerprint])).client.channel)).toBe(status.UNAVAILABLE);
  });

  it('says which file cannot be read', () => {
    expect(() => loadTls({ ...options(here), key: '/nowhere/key.pem' })).toThrow('/nowhere/key.pem cannot be read');
  });
});
