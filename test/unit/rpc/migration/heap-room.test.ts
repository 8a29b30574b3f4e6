import { beforeEach, describe, expect, it, vi } from 'vitest';
import { createHeapRoom } from '../../../../server/rpc/migration/heap-room.js';

const v8 = vi.hoisted(() => ({ used: 0, flags: [] as string[] }));
vi.mock('node:v8', () => ({
  getHeapStatistics: () => ({ used_heap_size: v8.used }),
  setFlagsFromString: (flag: string) => void v8.flags.push(flag),
}));

const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

describe('the room of V8', () => {
  beforeEach(() => {
    v8.flags.length = 0;
    v8.used = 16 * 2 ** 20;
  });

  it('is enough for 128 MiB of buffers while a guest moves, and as the launcher has it before and after', async () => {
    const room = createHeapRoom();
    room.enter();
    await settled();
    room.leave();
    await settled();
    expect(v8.flags).toEqual(['--heap-growing-percent=800', '--heap-growing-percent=100']);
  });

  it('is given back when the last of several guests has moved', async () => {
    const room = createHeapRoom();
    room.enter();
    room.enter();
    await settled();
    room.leave();
    await settled();
    expect(v8.flags).toHaveLength(1);
    room.leave();
    await settled();
    expect(v8.flags).toHaveLength(2);
  });

  it('is not less than usual where much is alive', async () => {
    v8.used = 2 ** 30;
    createHeapRoom().enter();
    await settled();
    expect(v8.flags).toEqual(['--heap-growing-percent=100']);
  });

  it('is as usual where the guest has moved before V8 could be told', async () => {
    const room = createHeapRoom();
    room.enter();
    room.leave();
    await settled();
    expect(v8.flags.at(-1)).toBe('--heap-growing-percent=100');
  });
});
