import { describe, expect, it } from 'vitest';
import { Failure } from '../../../../server/kernel/failure.js';
import { explained } from '../../../../server/rpc/migration/unreachable.js';

const unreachable = (message: string): Failure =>
  new Failure('EHOSTUNREACH', 'DAEMON_UNREACHABLE', 'simkvmd', { daemon: '192.0.2.1:7341', message });

const silent = async (): Promise<boolean> => false;
const answersInTls = async (): Promise<boolean> => true;

describe('a daemon that cannot be reached', () => {
  it.each([
    ['connect ECONNREFUSED 192.0.2.1:7341', 'EHOSTUNREACH', 'DAEMON_UNREACHABLE'],
    ['808C:error:0A00010B:SSL routines:ssl3_get_record:wrong version number', 'EHOSTUNREACH', 'DAEMON_SPEAKS_NO_TLS'],
    ['the other end speaks no HTTP/2', 'EHOSTUNREACH', 'DAEMON_SPEAKS_NO_TLS'],
    ['certificate signature failure', 'EACCES', 'TLS_CERTIFICATE_REFUSED'],
    ['unable to verify the first certificate', 'EACCES', 'TLS_CERTIFICATE_REFUSED'],
    ["Hostname/IP does not match certificate's altnames", 'EACCES', 'TLS_CERTIFICATE_REFUSED'],
    ['the certificate with SHA-256 5b1c is no --tls-peer', 'EACCES', 'TLS_PEER_NOT_ALLOWED'],
  ])('is told apart by one that speaks TLS: %s', async (message, errno, reason) => {
    const why = await explained(unreachable(message), true, silent);
    expect(why).toMatchObject({ errno, reason, details: { daemon: '192.0.2.1:7341', message, allowed: expect.any(String) } });
  });

  it('is asked whether it speaks TLS by one that does not', async () => {
    const why = unreachable('Failed to connect');
    expect(await explained(why, false, answersInTls)).toMatchObject({ errno: 'EHOSTUNREACH', reason: 'DAEMON_SPEAKS_TLS' });
    expect(await explained(why, false, silent)).toMatchObject({ errno: 'EHOSTUNREACH', reason: 'DAEMON_UNREACHABLE' });
  });

  it('is not what a daemon that answers has said', async () => {
    const refused = new Failure('ESRCH', 'PROCESS_NOT_FOUND', 'find_task_by_vpid', { daemon: '192.0.2.1:7341' });
    expect(await explained(refused, false, answersInTls)).toBe(refused);
  });
});
