import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  PAGES_PER_2M,
  type PageState,
  RMP_RESULT,
  Rmp,
  type RmpUpdate,
  VMPL_PERMISSION,
} from '../../../../server/hardware/amd/rmp.js';
import { asid, gpa, PAGE_SIZE, pfn } from '../../../../server/hardware/units.js';

const PAGE = pfn(1024);
const GPA = gpa(0x20_0000);
const OWNER = asid(1);

function active(): Rmp {
  const rmp = new Rmp();
  rmp.initialise([{ first: 7, end: 8 }]);
  return rmp;
}

const update = (fields: Partial<RmpUpdate>): RmpUpdate => ({
  assigned: true,
  size: '4k',
  immutable: false,
  asid: OWNER,
  gpa: GPA,
  ...fields,
});
const SHARED = update({ assigned: false, asid: asid(0), gpa: gpa(0) });
const access = { asid: OWNER, gpa: GPA, size: '4k', vmpl: 0, permissions: VMPL_PERMISSION.WRITE } as const;

describe('page states', () => {
  it('follow RMPUPDATE and PVALIDATE', () => {
    const rmp = active();
    const steps: readonly (readonly [() => unknown, PageState])[] = [
      [() => 0, 'hypervisor'],
      [() => rmp.rmpupdate(PAGE, update({})), 'guest-invalid'],
      [() => rmp.pvalidate(PAGE, OWNER, GPA, '4k', true), 'guest-valid'],
      [() => rmp.pvalidate(PAGE, OWNER, GPA, '4k', false), 'guest-invalid'],
      [() => rmp.pvalidate(PAGE, OWNER, GPA, '4k', true), 'guest-valid'],
      [() => rmp.rmpupdate(PAGE, update({})), 'guest-invalid'],
      [() => rmp.rmpupdate(PAGE, SHARED), 'hypervisor'],
      [() => rmp.rmpupdate(PAGE, update({ immutable: true })), 'pre-guest'],
      [() => rmp.setState(PAGE, 'reclaim'), 'reclaim'],
      [() => rmp.rmpupdate(PAGE, SHARED), 'hypervisor'],
      [() => rmp.rmpupdate(PAGE, update({ immutable: true, asid: asid(0), gpa: gpa(0) })), 'firmware'],
      [() => rmp.setState(PAGE, 'context'), 'context'],
    ];
    for (const [step, state] of steps) {
      step();
      expect(rmp.state(PAGE)).toBe(state);
    }
  });

  it('a validated page that is made immutable waits for a swap; changed in any other way it must be validated anew', () => {
    const rmp = active();
    rmp.rmpupdate(PAGE, update({}));
    rmp.pvalidate(PAGE, OWNER, GPA, '4k', true);
    rmp.rmpupdate(PAGE, update({ immutable: true }));
    expect(rmp.state(PAGE)).toBe('pre-swap');
    const other = active();
    other.rmpupdate(PAGE, update({}));
    other.pvalidate(PAGE, OWNER, GPA, '4k', true);
    other.rmpupdate(PAGE, update({ immutable: true, gpa: gpa(0x1000) }));
    expect(other.state(PAGE)).toBe('pre-guest');
  });
});

describe('RMPUPDATE', () => {
  it('refuses immutable pages, pages fixed to the hypervisor, misaligned and contradictory operands', () => {
    const rmp = active();
    rmp.rmpupdate(PAGE, update({ immutable: true }));
    expect(rmp.rmpupdate(PAGE, SHARED)).toBe(RMP_RESULT.FAIL_PERMISSION);
    expect(rmp.rmpupdate(pfn(7), update({}))).toBe(RMP_RESULT.FAIL_PERMISSION);
    expect(rmp.state(pfn(7))).toBe('hv-fixed');
    expect(rmp.rmpupdate(pfn(1025), update({ size: '2m' }))).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.rmpupdate(pfn(1024), update({ size: '2m', gpa: gpa(0x1000) }))).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.rmpupdate(pfn(2000), update({ gpa: gpa(0x801) }))).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.rmpupdate(pfn(2000), update({ assigned: false }))).toBe(RMP_RESULT.FAIL_INPUT);
  });

  it('refuses a page inside a large one, and a large one over assigned pages, until PSMASH', () => {
    const rmp = active();
    expect(rmp.rmpupdate(PAGE, update({ size: '2m' }))).toBe(RMP_RESULT.OK);
    expect(rmp.entry(pfn(PAGE + 3)).gpa).toBe(GPA + 3 * PAGE_SIZE);
    expect(rmp.rmpupdate(pfn(PAGE + 3), SHARED)).toBe(RMP_RESULT.FAIL_OVERLAP);
    expect(rmp.psmash(pfn(PAGE + 1))).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.psmash(PAGE)).toBe(RMP_RESULT.OK);
    expect(rmp.entry(pfn(PAGE + 3)).gpa).toBe(GPA + 3 * PAGE_SIZE);
    expect(rmp.rmpupdate(pfn(PAGE + 3), SHARED)).toBe(RMP_RESULT.OK);
    expect(rmp.rmpupdate(PAGE, update({ size: '2m' }))).toBe(RMP_RESULT.FAIL_OVERLAP);
    expect(rmp.unsmash(PAGE)).toBe(false);
    rmp.rmpupdate(pfn(PAGE + 3), update({ gpa: gpa(GPA + 3 * PAGE_SIZE) }));
    expect(rmp.unsmash(PAGE)).toBe(true);
    expect(rmp.entry(pfn(PAGE + 511)).size).toBe('2m');
  });
});

describe('PVALIDATE and RMPADJUST', () => {
  it('PVALIDATE tells a wrong size, a wrong address and a change that is none', () => {
    const rmp = active();
    rmp.rmpupdate(PAGE, update({ size: '2m' }));
    const validate = (page: number, address: number, size: '4k' | '2m') =>
      rmp.pvalidate(pfn(page), OWNER, gpa(address), size, true);
    expect(validate(PAGE, GPA, '4k')).toEqual({ result: RMP_RESULT.FAIL_SIZEMISMATCH, changed: false });
    expect(validate(PAGE, GPA + 0x20_0000, '2m')).toEqual({ result: RMP_RESULT.FAIL_INPUT, changed: false });
    expect(validate(PAGE, GPA, '2m')).toEqual({ result: RMP_RESULT.OK, changed: true });
    expect(validate(PAGE, GPA, '2m')).toEqual({ result: RMP_RESULT.OK, changed: false });
    expect(rmp.pvalidate(PAGE, asid(2), GPA, '2m', false).result).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.state(pfn(PAGE + 100))).toBe('guest-valid');
  });

  it('RMPADJUST gives a lower VMPL at most what its own has', () => {
    const rmp = active();
    rmp.rmpupdate(PAGE, update({}));
    expect(rmp.rmpadjust(PAGE, OWNER, 0, 1, 1, false)).toBe(RMP_RESULT.FAIL_INPUT);
    rmp.pvalidate(PAGE, OWNER, GPA, '4k', true);
    expect(rmp.rmpadjust(PAGE, OWNER, 0, 0, 1, false)).toBe(RMP_RESULT.FAIL_PERMISSION);
    expect(rmp.rmpadjust(PAGE, OWNER, 0, 4, 1, false)).toBe(RMP_RESULT.FAIL_INPUT);
    expect(rmp.rmpadjust(PAGE, OWNER, 0, 1, VMPL_PERMISSION.READ, false)).toBe(RMP_RESULT.OK);
    expect(rmp.rmpadjust(PAGE, OWNER, 1, 2, VMPL_PERMISSION.WRITE, false)).toBe(RMP_RESULT.FAIL_PERMISSION);
    expect(rmp.checkPrivateAccess(PAGE, { ...access, vmpl: 1, permissions: VMPL_PERMISSION.READ })).toBe(null);
    expect(rmp.checkPrivateAccess(PAGE, { ...access, vmpl: 1 })).toBe('vmpl');
    expect(rmp.rmpadjust(PAGE, OWNER, 0, 1, 0, true)).toBe(RMP_RESULT.OK);
    expect(rmp.checkVmsa(PAGE, OWNER)).toBe(null);
    expect(rmp.checkVmsa(PAGE, asid(2))).toBe('asid');
  });
});

describe('accesses', () => {
  it('of the host: it reads everything and writes only what is its own', () => {
    const rmp = active();
    expect(rmp.checkHostWrite(PAGE)).toBe(null);
    rmp.rmpupdate(PAGE, update({}));
    expect(rmp.checkHostWrite(PAGE)).toBe('assigned');
    expect(rmp.checkSharedAccess(PAGE)).toBe('assigned');
  });

  it('of a guest: only to pages that are its own, at their address, validated, in the right size', () => {
    const rmp = active();
    expect(rmp.checkPrivateAccess(PAGE, access)).toBe('not-assigned');
    rmp.rmpupdate(PAGE, update({}));
    expect(rmp.checkPrivateAccess(PAGE, access)).toBe('not-validated');
    rmp.pvalidate(PAGE, OWNER, GPA, '4k', true);
    expect(rmp.checkPrivateAccess(PAGE, access)).toBe(null);
    expect(rmp.checkPrivateAccess(PAGE, { ...access, gpa: gpa(GPA + 8) })).toBe(null);
    expect(rmp.checkPrivateAccess(PAGE, { ...access, asid: asid(2) })).toBe('asid');
    expect(rmp.checkPrivateAccess(PAGE, { ...access, gpa: gpa(0) })).toBe('gpa');
    expect(rmp.checkPrivateAccess(PAGE, { ...access, size: '2m' })).toBe('size');
    rmp.rmpupdate(PAGE, update({ immutable: true }));
    expect(rmp.checkPrivateAccess(PAGE, access)).toBe('immutable');
  });

  it('are not checked before SNP_INIT', () => {
    const rmp = new Rmp();
    expect([rmp.checkHostWrite(PAGE), rmp.checkPrivateAccess(PAGE, access), rmp.checkVmsa(PAGE, OWNER)]).toEqual([
      null,
      null,
      null,
    ]);
  });
});

it('no sequence of RMPUPDATE, PSMASH and PVALIDATE lets two entries cover one page', () => {
  const step = fc.record({
    page: fc.integer({ min: 1024, max: 1024 + 2 }),
    head: fc.boolean(),
    size: fc.constantFrom<'4k' | '2m'>('4k', '2m'),
    what: fc.constantFrom('assign', 'share', 'smash', 'validate'),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const rmp = active();
      for (const { page, head, size, what } of steps) {
        const target = pfn(head ? 1024 : page);
        const address = gpa(GPA + (target - 1024) * PAGE_SIZE);
        if (what === 'assign') rmp.rmpupdate(target, update({ size, gpa: address }));
        if (what === 'share') rmp.rmpupdate(target, { ...SHARED, size });
        if (what === 'smash') rmp.psmash(target);
        if (what === 'validate') rmp.pvalidate(target, OWNER, address, size, true);
        const homes = [...rmp.pages()];
        const large = homes.filter((each) => rmp.entry(each).size === '2m');
        for (const each of large) expect(homes.filter((other) => other > each && other < each + PAGES_PER_2M)).toEqual([]);
      }
    }),
    { numRuns: 200 },
  );
});
