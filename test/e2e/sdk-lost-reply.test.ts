import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type Daemon, EFD, KvmError, SimKvm, startDaemon } from '../../client/index.js';
import { expectNothingLeft } from './nothing-left.js';
import { startLossyProxy } from './sdk-proxy.js';

let daemon: Daemon;

beforeAll(async () => {
  daemon = await startDaemon();
});

afterAll(async () => {
  await daemon.stop();
});

afterEach(async () => {
  await using simkvm = await SimKvm.connect(daemon.target);
  await expectNothingLeft(simkvm);
});

describe('a reply that is lost on the way', () => {
  it('is asked for again, and its call has been executed once', async () => {
    await using proxy = await startLossyProxy(daemon.target);
    await using remote = await SimKvm.connect(proxy.target);
    const spawned = await remote.spawn('survivor');
    const counter = await spawned.eventfd(0, EFD.NONBLOCK);
    const lost = proxy.loseNextAnswer('every connection');
    await Promise.all([counter.write(1), lost]);
    expect(await counter.read()).toBe(1n);
    await spawned.exit();
  });

  it('does not end the process: its lease has a connection of its own', async () => {
    await using proxy = await startLossyProxy(daemon.target);
    await using remote = await SimKvm.connect(proxy.target);
    await using process = await remote.attach();
    await using counter = await process.eventfd(0, EFD.NONBLOCK);
    const lost = proxy.loseNextAnswer('its connection');
    await Promise.all([counter.write(1), lost]);
    expect(await counter.read()).toBe(1n);
  });

  it('of a process that ended with its connection is a loss, and says so', async () => {
    await using proxy = await startLossyProxy(daemon.target);
    await using remote = await SimKvm.connect(proxy.target);
    const process = await remote.attach();
    const lost = proxy.loseNextAnswer('every connection');
    const failure = await process.eventfd().catch(KvmError.from);
    await lost;
    expect(failure).toMatchObject({ errno: null, reason: 'UNAVAILABLE' });
    expect(await process.ended).toMatchObject({ kind: 'lost' });
  });
});
