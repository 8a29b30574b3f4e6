import { describe, expect, it } from 'vitest';
import { RequestIds } from '../../../client/request-ids.js';

describe('request ids', () => {
  it('count up from 1', () => {
    const ids = new RequestIds();
    expect([ids.next(), ids.next(), ids.next()]).toEqual([1, 2, 3]);
  });

  it('acknowledge nothing with the first call', () => {
    const ids = new RequestIds();
    expect(ids.acknowledgement(ids.next())).toBeNull();
  });

  it('acknowledge the highest id up to which every reply has arrived', () => {
    const ids = new RequestIds();
    for (let id = 1; id <= 4; id++) ids.next();
    ids.arrived(1);
    ids.arrived(3);
    expect(ids.acknowledgement(ids.next())).toBe('1');
    ids.arrived(2);
    expect(ids.acknowledgement(ids.next())).toBe('3');
  });

  it('name what is still out where one call lasts long', () => {
    const ids = new RequestIds();
    ids.next();
    for (let id = 2; id <= 300; id++) {
      ids.next();
      if (id !== 250) ids.arrived(id);
    }
    expect(ids.acknowledgement(ids.next())).toBe('300,1,250');
  });

  it('never acknowledge the id of a call that is asked again', () => {
    const ids = new RequestIds();
    ids.next();
    const again = ids.next();
    for (let id = 3; id <= 300; id++) ids.arrived(ids.next());
    ids.arrived(1);
    expect(ids.acknowledgement(again)).toBe('1');
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
