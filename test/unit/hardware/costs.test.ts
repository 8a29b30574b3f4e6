import { describe, expect, it } from 'vitest';
import { COSTS, createCostLedger } from '../../../server/hardware/costs.js';

describe('the ledger of simulated costs', () => {
  it('counts what is charged, and prices it by the table', () => {
    const ledger = createCostLedger();
    expect(ledger.nanoseconds).toBe(0);
    ledger.charge('pte_zapped', 512);
    ledger.charge('pte_zapped');
    ledger.charge('wbinvd');
    expect(ledger.counts.get('pte_zapped')).toBe(513);
    expect(ledger.nanoseconds).toBe(513 * COSTS.pte_zapped.nanoseconds + COSTS.wbinvd.nanoseconds);
  });

  it('scales single costs by factors', () => {
    const ledger = createCostLedger({ wbinvd: 2 });
    ledger.charge('wbinvd');
    ledger.charge('ipi');
    expect(ledger.nanoseconds).toBe(2 * COSTS.wbinvd.nanoseconds + COSTS.ipi.nanoseconds);
  });

  it('says where each cost comes from', () => {
    for (const [primitive, cost] of Object.entries(COSTS)) {
      expect([primitive, cost.nanoseconds > 0, cost.source.length > 0]).toEqual([primitive, true, true]);
    }
  });
});
