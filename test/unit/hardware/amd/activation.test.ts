import { describe, expect, it } from 'vitest';
import { GUEST_STATUS, INIT } from '../../../../server/hardware/amd/command-buffers.js';
import { STATUS, type Status } from '../../../../server/hardware/amd/status.js';
import { asid } from '../../../../server/hardware/units.js';
import { guestInState } from './guests.js';
import { createRig, hex, type Rig } from './rig.js';

describe('ACTIVATE', () => {
  it('gives SEV-ES guests the lower ASIDs and SEV guests the upper ones', () => {
    const rig = createRig({ asids: { count: 8, minSev: 5 } });
    rig.init();
    const [sev, es] = [rig.launchStart(0), rig.launchStart(4)];
    for (const id of [0, 9, 0xffffffff]) {
      expect(rig.activate(sev, id)).toBe(STATUS.INVALID_ASID);
      expect(rig.activate(es, id)).toBe(STATUS.INVALID_ASID);
    }
    expect(rig.activate(sev, 4)).toBe(STATUS.INVALID_ASID);
    expect(rig.activate(es, 5)).toBe(STATUS.INVALID_ASID);
    expect(rig.activate(sev, 5)).toBe(STATUS.SUCCESS);
    expect(rig.activate(es, 4)).toBe(STATUS.SUCCESS);
    expect(rig.asidKeys.loaded()).toEqual([4, 5]);
  });

  it('refuses an ASID that another guest has, and a guest that has one', () => {
    const rig = createRig();
    rig.init();
    const [a, b] = [rig.launchStart(), rig.launchStart()];
    expect(rig.activate(a, 5)).toBe(STATUS.SUCCESS);
    expect(rig.activate(b, 5)).toBe(STATUS.ASID_OWNED);
    expect(rig.activate(a, 5)).toBe(STATUS.ACTIVE);
    expect(rig.activate(a, 6)).toBe(STATUS.ACTIVE);
    expect(rig.activate(99, 6)).toBe(STATUS.INVALID_GUEST);
  });

  it('can move a guest, with its memory, to another ASID', () => {
    const rig = createRig();
    rig.init();
    const guest = guestInState(rig, 'running', 5);
    const before = hex(rig.seenBy(5, guest.page, 64));
    expect(rig.onGuest('DEACTIVATE', guest.handle).status).toBe(STATUS.SUCCESS);
    expect(rig.asidKeys.keyOf(asid(5))).toBe(null);
    expect(rig.activate(guest.handle, 6)).toBe(STATUS.SUCCESS);
    expect(hex(rig.seenBy(6, guest.page, 64))).toBe(before);
    expect(GUEST_STATUS.asid.get(rig.guestStatus(guest.handle).buffer)).toBe(6);
  });
});

describe('DEACTIVATE and DECOMMISSION', () => {
  it('are refused to inactive and to active guests', () => {
    const rig = createRig();
    rig.init();
    const handle = rig.launchStart();
    expect(rig.onGuest('DEACTIVATE', handle).status).toBe(STATUS.INACTIVE);
    rig.activate(handle, 5);
    expect(rig.onGuest('DECOMMISSION', handle).status).toBe(STATUS.ACTIVE);
    expect(rig.onGuest('DEACTIVATE', handle).status).toBe(STATUS.SUCCESS);
    expect(rig.onGuest('DECOMMISSION', handle).status).toBe(STATUS.SUCCESS);
    expect(rig.onGuest('DECOMMISSION', handle).status).toBe(STATUS.INVALID_PLATFORM_STATE);
  });

  it('lead back to INIT with the last guest, and a handle is not given twice', () => {
    const rig = createRig();
    rig.init();
    const [a, b] = [rig.launchStart(), rig.launchStart()];
    rig.onGuest('DECOMMISSION', a);
    expect(rig.processor.state).toBe('working');
    rig.onGuest('DECOMMISSION', b);
    expect(rig.processor.state).toBe('init');
    expect(rig.launchStart()).toBe(3);
  });
});

describe('flushing', () => {
  /** One step of a sequence on ASID 5, and the status it must have. */
  type Step = (rig: Rig) => Status;
  const wbinvd: Step = (rig) => {
    rig.wbinvdOnAllCpus();
    return STATUS.SUCCESS;
  };
  const flush: Step = (rig) => rig.issue('DF_FLUSH').status;
  const deactivate: Step = (rig) => rig.onGuest('DEACTIVATE', 1).status;
  const activateAgain: Step = (rig) => rig.activate(rig.launchStart(), 5);
  const onlyFirstCpu: Step = (rig) => {
    rig.wbinvd(0);
    return STATUS.SUCCESS;
  };

  const sequences: readonly { readonly name: string; readonly steps: readonly Step[]; readonly last: Status }[] = [
    { name: 'DEACTIVATE, ACTIVATE of the same ASID', steps: [deactivate, activateAgain], last: STATUS.DFFLUSH_REQUIRED },
    { name: 'DEACTIVATE, DF_FLUSH', steps: [deactivate, flush], last: STATUS.WBINVD_REQUIRED },
    { name: 'WBINVD, DEACTIVATE, DF_FLUSH', steps: [wbinvd, deactivate, flush], last: STATUS.WBINVD_REQUIRED },
    {
      name: 'DEACTIVATE, WBINVD on one CPU of two, DF_FLUSH',
      steps: [deactivate, onlyFirstCpu, flush],
      last: STATUS.WBINVD_REQUIRED,
    },
    { name: 'DEACTIVATE, WBINVD, ACTIVATE', steps: [deactivate, wbinvd, activateAgain], last: STATUS.DFFLUSH_REQUIRED },
    { name: 'DEACTIVATE, WBINVD, DF_FLUSH, ACTIVATE', steps: [deactivate, wbinvd, flush, activateAgain], last: STATUS.SUCCESS },
  ];

  for (const { name, steps, last } of sequences) {
    it(`${name}: ${last === STATUS.SUCCESS ? 'done' : 'refused'}`, () => {
      const rig = createRig();
      rig.init();
      expect(rig.activate(rig.launchStart(), 5)).toBe(STATUS.SUCCESS);
      const statuses = steps.map((step) => step(rig));
      expect(statuses).toEqual([...statuses.slice(0, -1).map(() => STATUS.SUCCESS), last]);
    });
  }

  it('is needed after INIT, for every ASID', () => {
    const rig = createRig();
    rig.issue('INIT', INIT);
    const handle = rig.launchStart();
    expect(rig.activate(handle, 5)).toBe(STATUS.DFFLUSH_REQUIRED);
    expect(rig.issue('DF_FLUSH').status).toBe(STATUS.WBINVD_REQUIRED);
    rig.flush();
    expect(rig.activate(handle, 5)).toBe(STATUS.SUCCESS);
  });

  it('of one ASID leaves an active one alone', () => {
    const rig = createRig();
    rig.init();
    const [a, b] = [rig.launchStart(), rig.launchStart()];
    rig.activate(a, 5);
    rig.activate(b, 6);
    rig.onGuest('DEACTIVATE', a);
    const key = rig.asidKeys.keyOf(asid(6));
    rig.flush();
    expect(rig.asidKeys.keyOf(asid(6))).toBe(key);
    expect(key !== null && rig.asidKeys.isLoaded(key)).toBe(true);
    expect(rig.asidKeys.isDirty(asid(5))).toBe(false);
  });

  it('is charged by CPU', () => {
    const rig = createRig({ cpus: 4 });
    rig.wbinvdOnAllCpus();
    expect(rig.ledger.counts.get('wbinvd')).toBe(4);
  });

  it('gives all ASIDs back over 1,000 lives of guests', () => {
    const rig = createRig({ asids: { count: 2, minSev: 1 } });
    rig.issue('INIT', INIT);
    rig.flush();
    for (let life = 0; life < 1000; life++) {
      const handle = rig.launchStart();
      if (rig.activate(handle, 1) !== STATUS.SUCCESS) {
        rig.flush();
        expect(rig.activate(handle, 1)).toBe(STATUS.SUCCESS);
      }
      rig.onGuest('DEACTIVATE', handle);
      rig.onGuest('DECOMMISSION', handle);
    }
    expect(rig.processor.state).toBe('init');
    expect(rig.asidKeys.loaded()).toEqual([]);
  });
});
