import { expect } from 'vitest';
import type { SimKvm } from '../../client/index.js';

/** A test leaves nothing behind on its host: no VM, no kernel memory, no finding. */
export const expectNothingLeft = async (simkvm: SimKvm): Promise<void> => {
  const { vms, kmem } = await simkvm.host.getHost();
  expect({ vms, held: kmem.filter(({ charged_bytes }) => charged_bytes > 0n) }).toEqual({ vms: 0, held: [] });
  expect((await simkvm.host.listFindings()).findings).toEqual([]);
};
