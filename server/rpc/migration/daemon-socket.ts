import { type ConnectOpts, connect as connectTcp, isIP, type OnReadOpts, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';

const partsOf = (address: string): { readonly host: string; readonly port: number } => {
  const at = address.lastIndexOf(':');
  return { host: address.slice(0, at).replace(/^\[|\]$/g, ''), port: Number(address.slice(at + 1)) };
};

/**
 * Dials another daemon.
 * @param address `host:port`
 * @param tls null: in the clear
 * @param onread where what comes is put, and who is told; null: as with every socket
 */
export const openSocket = (address: string, tls: ConnectionOptions | null, onread: OnReadOpts | null): Socket => {
  const to = { ...partsOf(address), ...(onread === null ? {} : { onread }) };
  if (tls === null) return connectTcp(to).setNoDelay();
  // RFC 6066 has no server name that is an address.
  const servername = isIP(to.host) === 0 ? to.host : '';
  const options: ConnectionOptions & ConnectOpts = { ...tls, ...to, servername, ALPNProtocols: ['h2'] };
  const socket = connectTls(options);
  socket.once('secureConnect', () => {
    if (socket.alpnProtocol !== 'h2') socket.destroy(new Error('the other end speaks no HTTP/2'));
  });
  return socket.setNoDelay();
};
