import { describe, expect, it } from 'vitest';
import { RequestIds } from '../../../client/request-ids.js';

describe('request ids', () => {
  it('count up from 1', () => {
    const ids = new RequestIds();
    expect([ids.next(), ids.next(), ids.next()]).toEqual([1, 2, 3]);
  });

  /** Ids up to `last`, all of whose replies have arrived but those in `out`. */
  const idsUpTo = (last: number, ...out: number[]): RequestIds => {
    const ids = new RequestIds();
    for (let id = 1; id <= last; id++) {
      ids.next();
      if (!out.includes(id)) ids.arrived(id);
    }
    return ids;
  };

  it('acknowledge nothing with the first calls', () => {
    const ids = idsUpTo(63);
    expect(ids.acknowledgement(ids.next())).toBeNull();
  });

  it('acknowledge many replies at a time: the highest id up to which every reply has arrived', () => {
    const ids = idsUpTo(80, 70);
    expect(ids.acknowledgement(ids.next())).toBe('69');
    expect(ids.acknowledgement(ids.next())).toBeNull();
    for (const id of [70, 81, 82]) ids.arrived(id);
    for (let id = 83; id <= 150; id++) ids.arrived(ids.next());
    expect(ids.acknowledgement(ids.next())).toBe('150');
  });

  it('name what is still out where one call lasts long', () => {
    const ids = idsUpTo(300, 1, 250);
    expect(ids.acknowledgement(ids.next())).toBe('300,1,250');
    expect(ids.acknowledgement(ids.next())).toBeNull();
  });

  it('let the host never keep more than it can', () => {
    const ids = new RequestIds();
    let kept = 0;
    ids.next();
    for (let call = 2; call < 5000; call++) {
      const id = ids.next();
      const acknowledgement = ids.acknowledgement(id);
      kept = acknowledgement === null ? kept + 1 : id - Number(acknowledgement.split(',')[0]);
      expect(kept).toBeLessThan(512);
      ids.arrived(id);
    }
  });

  it('never acknowledge the id of a call that is asked again', () => {
    const ids = idsUpTo(300, 2);
    expect(ids.acknowledgement(2)).toBeNull();
  });

  it('of a process that others have acted as before begin beyond theirs, and acknowledge those', () => {
    const before = new RequestIds();
    const taken = RequestIds.takenOver();
    const id = taken.next();
    expect(id).toBeGreaterThan(before.next());
    expect(Number.isSafeInteger(id)).toBe(true);
    expect(taken.acknowledgement(id)).toBe(String(id - 1));
  });
});
