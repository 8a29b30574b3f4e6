/**
 * Room for V8 while guests move. V8 counts buffers outside of its heap against the limit of the old generation, and the launcher
 * keeps that at twice of what is alive, so that a daemon with thousands of VMs stays small. A small heap would then be marked
 * anew for every few messages with pages; so as long as guests move, the limit is far away.
 */
export interface HeapRoom {
  /** A guest is about to move. */
  enter(): void;
  /** It has moved, or stays. */
  leave(): void;
}

/** Bytes that may be allocated between two collections while guests move. V8 never waits for more than 64 MiB of buffers. */
const ROOM_BYTES = 128 * 2 ** 20;
/** As the launcher has it, per cent of what is alive. */
const USUAL_PERCENT = 100;

const setGrowth = async (moving: () => boolean): Promise<void> => {
  // It takes milliseconds to load, and a daemon may never need it.
  const { getHeapStatistics, setFlagsFromString } = await import('node:v8');
  const percent = Math.ceil((100 * ROOM_BYTES) / getHeapStatistics().used_heap_size);
  setFlagsFromString(`--heap-growing-percent=${moving() ? Math.max(percent, USUAL_PERCENT) : USUAL_PERCENT}`);
};

/** For a process whose V8 nobody else sets up: the daemon's. */
export const createHeapRoom = (): HeapRoom => {
  let moving = 0;
  const change = (by: 1 | -1): void => {
    moving += by;
    if (moving === 0 || (moving === 1 && by === 1)) void setGrowth(() => moving > 0);
  };
  return { enter: () => change(1), leave: () => change(-1) };
};
