import { describe, expect, it } from 'vitest';
import type { PostMovePolicyName } from '../../../../client/index.js';
import type { Row } from '../../../../client/lab/experiment.js';
import { rankByBlackout } from '../../../../client/lab/ranking.js';

const COSTS = { slow: 100, quick: 10 };

const row = (policy: PostMovePolicyName, blackout: Readonly<Record<string, number>>): Row => ({
  subject: { kind: 'move', policy, tolerant: false },
  options: {
    ...{ encryption: 'SEV', vmType: 'DEFAULT', memoryBytes: 0, backing: 'shared-memfd', irqfdOrder: 'fresh-eventfds' },
    image: 'none',
  },
  launch: { digest: '', asExpected: true, measurementVerifies: true },
  move: { errno: null, blackoutNs: 0, blackout, phases: [], work: { counts: blackout, nanoseconds: 0, nanosecondsEach: COSTS } },
  teardown: null,
  teardownWork: { counts: {}, nanoseconds: 0, nanosecondsEach: {} },
  held: [],
  queues: [],
  rungAtDestination: {},
  guestEnd: [],
  failedCalls: [],
  findings: [],
});

describe('the ranking by blackout', () => {
  it('puts the shortest first, priced by the cost model', () => {
    const { order } = rankByBlackout([row('VM_DEAD', { slow: 2 }), row('NOT_DEAD', { quick: 3 })]);
    expect(order).toEqual([
      { policy: 'NOT_DEAD', blackoutNs: 30 },
      { policy: 'VM_DEAD', blackoutNs: 200 },
    ]);
  });

  it('holds where one policy does more of everything', () => {
    expect(rankByBlackout([row('VM_DEAD', { slow: 2, quick: 1 }), row('NOT_DEAD', { quick: 1 })]).overturnedBy).toEqual([]);
  });

  it('says which cost overturns it', () => {
    const { overturnedBy } = rankByBlackout([row('VM_DEAD', { slow: 1 }), row('NOT_DEAD', { quick: 8 })]);
    expect(overturnedBy).toEqual([
      { primitive: 'slow', factor: 0.5 },
      { primitive: 'quick', factor: 2 },
    ]);
  });
});
