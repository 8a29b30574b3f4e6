import { describe, expect, it } from 'vitest';
import { createLog, type LogLevel } from '../../server/log.js';

const logged = (least: LogLevel): unknown[] => {
  const lines: string[] = [];
  const log = createLog(least, (line) => void lines.push(line));
  log.debug('call', { path: '/simkvm.v1.HostService/GetHost' });
  log.info('ready', { listen: '127.0.0.1:1' });
  log.warn('two\nlines');
  return lines.map((line) => {
    expect(line).toMatch(/^[^\n]*\n$/);
    return JSON.parse(line);
  });
};

describe("the daemon's log", () => {
  it('is a JSON object for each line', () => {
    expect(logged('debug')).toMatchObject([
      { level: 20, msg: 'call', path: '/simkvm.v1.HostService/GetHost', pid: process.pid },
      { level: 30, msg: 'ready', listen: '127.0.0.1:1', time: expect.any(Number), hostname: expect.any(String) },
      { level: 40, msg: 'two\nlines' },
    ]);
  });

  it('leaves out what is below its level', () => {
    expect(logged('info')).toMatchObject([{ msg: 'ready' }, { level: 40 }]);
    expect(logged('warn')).toMatchObject([{ level: 40 }]);
    expect([logged('error'), logged('silent')]).toEqual([[], []]);
  });

  it('says what it would write', () => {
    const { writes } = createLog('info', () => {});
    expect([writes('debug'), writes('info'), writes('error')]).toEqual([false, true, true]);
  });
});
