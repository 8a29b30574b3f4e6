import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { startDaemon, startWorld } from '../../client/index.js';

describe('a daemon of a test’s own', () => {
  it('comes with a connection and a process in one call, and is gone afterwards', async () => {
    let pid = 0;
    {
      await using world = await startWorld({ args: ['--seed', 'mine', '--policy', 'VM_MOVED'] });
      pid = world.daemon.pid;
      const { seed } = await world.simkvm.host.getHost();
      expect(seed).toBe('mine');
      expect(await world.simkvm.host.setPostMovePolicy('VM_DEAD')).toBe('VM_MOVED');
    }
    expect(isRunning(pid)).toBe(false);
  });

  it('that cannot start says why', async () => {
    await expect(startDaemon({ args: ['--vendor', 'cyrix'] })).rejects.toThrow(/simkvmd ended with status 1.*cyrix/s);
  });

  it('does not outlive a program that is killed', async () => {
    const client = new URL('../../dist/client/index.js', import.meta.url);
    const script = `
      import { startDaemon } from ${JSON.stringify(client.href)};
      console.log((await startDaemon()).pid);
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    // A program that fails says nothing, and is not waited for.
    const [line]: unknown[] = await Promise.race([
      once(child.stdout.setEncoding('utf8'), 'data'),
      once(child, 'exit').then(() => []),
    ]);
    expect(isRunning(Number(line))).toBe(true);
    child.kill('SIGKILL');
    await expect.poll(() => isRunning(Number(line))).toBe(false);
  });
});

const isRunning = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};
