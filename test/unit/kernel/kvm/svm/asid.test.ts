import { describe, expect, it } from 'vitest';
import { asid } from '../../../../../server/hardware/units.js';
import { MiscController } from '../../../../../server/kernel/cgroup/misc.js';
import { Failure, failed } from '../../../../../server/kernel/failure.js';
import { AsidAllocator } from '../../../../../server/kernel/kvm/svm/asid.js';

/** Ten ASIDs, 1 to 3 for SEV-ES and 4 to 10 for SEV. */
const setup = (range = { count: 10, minSev: 4 }, flushFails = false) => {
  let flushes = 0;
  const { root } = new MiscController({ sev: 100, sev_es: 100 });
  const allocator = new AsidAllocator({
    range,
    flush: () => {
      flushes++;
      return flushFails ? new Failure('EIO', 'FIRMWARE_WBINVD_REQUIRED', 'test') : null;
    },
    onAllocate: () => {},
    onFree: () => {},
  });
  const take = (es: boolean): number | string => {
    const id = allocator.allocate(root, es);
    return failed(id) ? id.errno : id;
  };
  return { allocator, root, take, flushes: () => flushes };
};

describe('ASIDs', () => {
  it('come from the range of their class, lowest first', () => {
    const { take } = setup();
    expect([take(false), take(true), take(false), take(true)]).toEqual([4, 1, 5, 2]);
  });

  it('ENOTTY where a host has none of a class', () => {
    expect(setup({ count: 10, minSev: 1 }).take(true)).toBe('ENOTTY');
    expect(setup({ count: 10, minSev: 11 }).take(false)).toBe('ENOTTY');
    expect(setup({ count: 10, minSev: 1 }).take(false)).toBe(1);
  });

  it('are not used again before the class is exhausted, and then after one flush for all', () => {
    const { allocator, root, take, flushes } = setup();
    const first = [take(true), take(true)];
    for (const id of first) allocator.free(asid(Number(id)), root, true);
    expect(take(true)).toBe(3);
    expect(flushes()).toBe(0);
    expect([take(true), take(true), flushes()]).toEqual([1, 2, 1]);
  });

  it('EBUSY when all are in use, with the charge taken back, and no flush that would free nothing', () => {
    const { allocator, root, take, flushes } = setup();
    for (let count = 0; count < 3; count++) take(true);
    allocator.free(asid(Number(take(false))), root, false);
    expect(take(true)).toBe('EBUSY');
    expect(root.current('sev_es')).toBe(3);
    expect(flushes()).toBe(0);
  });

  it('stay unusable when the flush fails', () => {
    const { allocator, root, take } = setup({ count: 3, minSev: 4 }, true);
    for (let count = 0; count < 3; count++) take(true);
    allocator.free(asid(2), root, true);
    expect(take(true)).toBe('EBUSY');
  });

  it('of any class become free by the flush that another class asked for', () => {
    const { allocator, root, take, flushes } = setup({ count: 5, minSev: 4 });
    allocator.free(asid(Number(take(false))), root, false);
    for (let count = 0; count < 3; count++) take(true);
    allocator.free(asid(1), root, true);
    expect([take(true), flushes()]).toEqual([1, 1]);
    expect([take(false), take(false), flushes()]).toEqual([4, 5, 1]);
  });
});

describe('the misc cgroup', () => {
  it('refuses what goes over a limit of the group or one above it, and counts the refusal there', () => {
    const controller = new MiscController({ sev: 10, sev_es: 10 });
    const parent = controller.create('parent');
    const child = controller.create('child', parent);
    parent.max.sev = 2;
    expect([child.tryCharge('sev'), child.tryCharge('sev')]).toEqual([null, null]);
    const refused = child.tryCharge('sev');
    expect(refused?.errno).toBe('EBUSY');
    expect(refused?.details.cgroup).toBe('parent');
    expect([child.current('sev'), parent.events, child.events]).toEqual([2, 1, 0]);
    expect(child.tryCharge('sev_es')).toBeNull();
    child.uncharge('sev');
    expect(controller.root.current('sev')).toBe(1);
  });
});
