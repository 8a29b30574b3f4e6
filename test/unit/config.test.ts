import { describe, expect, it, vi } from 'vitest';
import { type DaemonConfig, parseConfig } from '../../server/config.js';

const FINGERPRINT = '0123456789abcdef'.repeat(4);
const TLS = ['--tls-cert', 'c.pem', '--tls-key', 'k.pem', '--tls-ca', 'a.pem'];

const parse = (...args: string[]): DaemonConfig => parseConfig(['node', 'simkvmd', ...args], '1.2.3');

/** What the daemon says when it ends because of its command line. */
const refused = (...args: string[]): string => {
  const exit = vi.spyOn(process, 'exit').mockImplementation(() => {
    throw new Error('exit');
  });
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  try {
    expect(() => parse(...args)).toThrow('exit');
    return write.mock.calls.map(([text]) => String(text)).join('');
  } finally {
    exit.mockRestore();
    write.mockRestore();
  }
};

describe('the command line of simkvmd', () => {
  it('has a daemon that keeps nothing, knows nobody and speaks in the clear, unless told otherwise', () => {
    const { tls, migration } = parse();
    expect(tls).toBeNull();
    expect(migration).toEqual({ stateDir: null, peers: [], advertise: null, unsealed: false });
  });

  it('leaves the platform’s identity to the secure processor, or keeps it in a file', () => {
    expect(parse().initExPath).toBeNull();
    expect(parse('--init-ex-path', '/var/lib/sev/nv').initExPath).toBe('/var/lib/sev/nv');
  });

  it('takes fingerprints as simkvm and as openssl print them, any number of them', () => {
    const colons = FINGERPRINT.toUpperCase().replace(/..(?=.)/g, '$&:');
    expect(parse('--peer', FINGERPRINT, '--peer', colons).migration.peers).toEqual([FINGERPRINT, FINGERPRINT]);
    expect(parse(...TLS, '--tls-peer', colons).tls).toEqual({ cert: 'c.pem', key: 'k.pem', ca: 'a.pem', peers: [FINGERPRINT] });
  });

  it.each([
    { args: ['--peer', 'abc'], says: "'abc' is not a SHA-256" },
    { args: ['--tls-cert', 'c.pem'], says: 'TLS needs --tls-cert, --tls-key and --tls-ca' },
    { args: ['--tls-peer', FINGERPRINT], says: 'TLS needs --tls-cert, --tls-key and --tls-ca' },
    { args: ['--advertise', 'somewhere'], says: 'is not HOST:PORT' },
  ])('refuses $args', ({ args, says }) => {
    expect(refused(...args)).toContain(says);
  });
});
