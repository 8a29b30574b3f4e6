import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../../server/kernel/config.js';
import { failed } from '../../../server/kernel/failure.js';
import { createHost } from '../../../server/kernel/kvm/host.js';
import { ProcessRegistry } from '../../../server/rpc/process-registry.js';

const started = (): ProcessRegistry => new ProcessRegistry(createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => 0n } }));

const tokenOf = (registry: ProcessRegistry): string => {
  const holder = registry.create('attached');
  if (failed(holder)) throw new Error(holder.reason);
  return holder.token;
};

describe('the token of a process', () => {
  it('means nothing to the next start of the daemon, though it has the same seed', () => {
    const [before, after] = [started(), started()];
    const token = tokenOf(before);
    expect(before.resolve(token, false)).toMatchObject({ pid: expect.any(Number) });
    tokenOf(after);
    expect(after.resolve(token, false)).toMatchObject({ errno: 'ESRCH' });
  });
});
