import { Failure, type Result } from '../../kernel/failure.js';

const ADDRESS = /^(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})$/;
const PORT_MAX = 65_535;
const ANY_HOST = /^(0\.0\.0\.0|\[::\])$/;

const parts = (address: string): { readonly host: string; readonly port: string } | null => {
  const [, host, port] = ADDRESS.exec(address) ?? [];
  return host === undefined || port === undefined || Number(port) > PORT_MAX ? null : { host, port };
};

/** EINVAL where it is not `host:port`, or the port is none that can be dialled. */
export const checkAddress = (field: string, given: string): Failure | null => {
  const found = parts(given);
  return found !== null && Number(found.port) > 0
    ? null
    : new Failure('EINVAL', 'ADDRESS', 'simkvmd', { field, given, allowed: 'host:port, for example 192.0.2.1:7341' });
};

/** The host of a peer as grpc-js names it: `127.0.0.1:4711`, `::1:4711`, `::ffff:192.0.2.1:4711`. */
const hostOfPeer = (peer: string): string => {
  const host = peer.slice(0, peer.lastIndexOf(':')).replace(/^::ffff:(?=\d+\.)/, '');
  return host.includes(':') ? `[${host}]` : host;
};

/**
 * The address that a daemon says that it can be dialled at, where a host of zeros stands for the one that its call comes from.
 * @param peer the caller, as grpc-js names it
 */
export const dialable = (field: string, given: string, peer: string): Result<string> => {
  const refused = checkAddress(field, given);
  if (refused !== null) return refused;
  const found = parts(given);
  return found === null || !ANY_HOST.test(found.host) ? given : `${hostOfPeer(peer)}:${found.port}`;
};
