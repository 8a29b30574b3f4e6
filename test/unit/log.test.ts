import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { createLog, type LogLevel } from '../../server/log.js';

/** What a daemon with this level writes, and how often it loads its logger. */
const logged = async (least: LogLevel): Promise<{ readonly lines: unknown[]; readonly loads: number }> => {
  const lines: unknown[] = [];
  let loads = 0;
  const log = createLog(least, async (level) => {
    loads++;
    return pino({ level }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  });
  log.debug('call', { path: '/simkvm.v1.HostService/GetHost' });
  log.info('ready', { listen: '127.0.0.1:1' });
  log.warn('two\nlines');
  await new Promise((resolve) => setImmediate(resolve));
  return { lines, loads };
};

describe("the daemon's log", () => {
  it('is a JSON object for each line, in order', async () => {
    const { lines, loads } = await logged('debug');
    expect(lines).toMatchObject([
      { level: 20, msg: 'call', path: '/simkvm.v1.HostService/GetHost', pid: process.pid },
      { level: 30, msg: 'ready', listen: '127.0.0.1:1', time: expect.any(Number), hostname: expect.any(String) },
      { level: 40, msg: 'two\nlines' },
    ]);
    expect(loads).toBe(1);
  });

  it('leaves out what is below its level', async () => {
    expect((await logged('info')).lines).toMatchObject([{ msg: 'ready' }, { level: 40 }]);
    expect((await logged('warn')).lines).toMatchObject([{ level: 40 }]);
  });

  it('loads nothing for a daemon that has nothing to say', async () => {
    expect(await logged('error')).toEqual({ lines: [], loads: 0 });
    expect(await logged('silent')).toEqual({ lines: [], loads: 0 });
  });

  it('says what it would write', () => {
    const { writes } = createLog('info');
    expect([writes('debug'), writes('info'), writes('warn')]).toEqual([false, true, true]);
  });
});
