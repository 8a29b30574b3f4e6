import type { Completion, Turn } from './vcpu-arch.js';

/** A completion that itself never waits. */
export const completion = (kind: Completion['kind'], wantsData: boolean, then: () => Turn): Completion => ({
  kind,
  wantsData,
  *run() {
    return then();
  },
});
