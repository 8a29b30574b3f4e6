import { describe, expect, it } from 'vitest';
import { COMMAND, type CommandName } from '../../../../../server/hardware/amd/command-ids.js';
import * as buffers from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { SNP_GUEST_STATE_NUMBER, type SnpGuestStateKind } from '../../../../../server/hardware/amd/snp/snp-guest.js';
import { PAGE_TYPE } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { STATUS, type Status } from '../../../../../server/hardware/amd/status.js';
import { asid, PAGE_SIZE, pfnToHpa } from '../../../../../server/hardware/units.js';
import { jsonVector, set, VECTORS_NEEDED, vectorsAbsent } from '../rig.js';
import { createSnpRig, initialised, POLICY, type SnpRig } from './snp-rig.js';

describe('guest contexts', () => {
  it('are made of firmware pages, and decommissioned with their ASID', () => {
    const rig = initialised();
    expect(rig.onContext('SNP_GCTX_CREATE', rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(rig.onContext('SNP_GCTX_CREATE', rig.firmwarePage().hpa + 8)).toBe(STATUS.INVALID_ADDRESS);
    const { context } = rig.runningGuest(2);
    expect(rig.stateOf(context)).toBe('context');
    expect(rig.onContext('SNP_GCTX_CREATE', context)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(rig.onContext('SNP_DECOMMISSION', context)).toBe(STATUS.SUCCESS);
    expect(rig.onContext('SNP_DECOMMISSION', context)).toBe(STATUS.INVALID_GUEST);
    expect([rig.stateOf(context), rig.asidKeys.keyOf(asid(2)), rig.asidKeys.isDirty(asid(2))]).toEqual(['firmware', null, true]);
    const next = rig.createContext();
    rig.launchStart(next);
    expect(rig.activate(next, 2)).toBe(STATUS.DFFLUSH_REQUIRED);
    rig.wbinvdOnAllCpus();
    rig.issue('SNP_DF_FLUSH');
    expect(rig.activate(next, 2)).toBe(STATUS.SUCCESS);
  });

  it('use the ASIDs of SEV-ES, each of them once', () => {
    const rig = initialised();
    const [a, b] = [rig.createContext(), rig.createContext()];
    for (const context of [a, b]) rig.launchStart(context);
    for (const id of [0, 5, 8, 9]) expect(rig.activate(a, id)).toBe(STATUS.INVALID_ASID);
    expect(rig.activate(a, 1)).toBe(STATUS.SUCCESS);
    expect(rig.activate(b, 1)).toBe(STATUS.ASID_OWNED);
    expect(rig.activate(a, 2)).toBe(STATUS.ACTIVE);
  });

  it('survive INIT, SHUTDOWN and the guests of the legacy platform', () => {
    const rig = initialised();
    const guest = rig.runningGuest(2);
    rig.legacyInit();
    expect(rig.asidKeys.loaded()).toEqual([2]);
    expect(rig.report(guest).report.length).toBe(1184);
    rig.issue('SHUTDOWN');
    expect(rig.asidKeys.loaded()).toEqual([2]);
    expect(rig.processor.snpGuests().length).toBe(1);
  });
});

describe.skipIf(vectorsAbsent)(`SNP guest commands in every guest state (${VECTORS_NEEDED})`, () => {
  interface Row {
    readonly id: number;
    readonly allowed: readonly string[];
    readonly result: string;
  }

  function loadRows(): Readonly<Record<string, Row>> {
    const matrix = vectorsAbsent ? null : jsonVector('state-matrix.json');
    if (typeof matrix !== 'object' || matrix === null || !('snpGuest' in matrix)) return {};
    const { snpGuest } = matrix;
    return typeof snpGuest === 'object' && snpGuest !== null && 'commands' in snpGuest ? Object(snpGuest.commands) : {};
  }

  const STATES: Readonly<Record<string, SnpGuestStateKind>> = { INIT: 'init', LAUNCH: 'launch', RUNNING: 'running' };
  /** RECLAIM and UNSMASH name a page, not a guest. */
  const LEFT_OUT = ['SNP_PAGE_RECLAIM', 'SNP_PAGE_UNSMASH'];
  const isCommandName = (name: string): name is CommandName => name in COMMAND;

  function contextIn(rig: SnpRig, kind: SnpGuestStateKind): number {
    const context = rig.createContext();
    if (kind === 'init') return context;
    rig.launchStart(context);
    if (kind === 'running') rig.launchFinish(context);
    return context;
  }

  /** A use of a command, and what it gives when the state is right: some stop at a later check. */
  function use(rig: SnpRig, name: CommandName, context: number): readonly [Status, Status] {
    switch (name) {
      case 'SNP_LAUNCH_START':
        return [rig.launchStart(context), STATUS.SUCCESS];
      case 'SNP_LAUNCH_UPDATE':
        return [rig.launchUpdate(context, PAGE_TYPE.ZERO, rig.frame().hpa), STATUS.INACTIVE];
      case 'SNP_LAUNCH_FINISH':
        return [rig.launchFinish(context), STATUS.SUCCESS];
      case 'SNP_ACTIVATE':
        return [rig.activate(context, 1), STATUS.SUCCESS];
      case 'SNP_GUEST_REQUEST':
        return [rig.request(context, new Uint8Array(PAGE_SIZE)).status, STATUS.INVALID_PARAM];
      case 'SNP_PAGE_MOVE':
        return [rig.issue(name, buffers.SNP_PAGE_MOVE, set(buffers.SNP_PAGE_MOVE.gctxPaddr, context)).status, STATUS.INACTIVE];
      case 'SNP_PAGE_SWAP_OUT':
        return [
          rig.issue(name, buffers.SNP_PAGE_SWAP_OUT, set(buffers.SNP_PAGE_SWAP_OUT.gctxPaddr, context)).status,
          STATUS.INACTIVE,
        ];
      case 'SNP_PAGE_SWAP_IN':
        return [
          rig.issue(name, buffers.SNP_PAGE_SWAP_IN, set(buffers.SNP_PAGE_SWAP_IN.gctxPaddr, context)).status,
          STATUS.INACTIVE,
        ];
      case 'SNP_DECOMMISSION':
        return [rig.onContext(name, context), STATUS.SUCCESS];
      default:
        throw new Error(`no use of ${name}`);
    }
  }

  for (const [name, row] of Object.entries(loadRows())) {
    if (LEFT_OUT.includes(name)) continue;
    if (!isCommandName(name)) throw new Error(`${name} is not implemented`);
    for (const [stateName, kind] of Object.entries(STATES)) {
      const allowed = row.allowed.includes(stateName);
      it(`${name} in ${stateName} is ${allowed ? 'done' : 'refused'}`, () => {
        const rig = initialised();
        const context = contextIn(rig, kind);
        const [status, whenAllowed] = use(rig, name, context);
        expect(COMMAND[name]).toBe(row.id);
        expect(status).toBe(allowed ? whenAllowed : STATUS.INVALID_GUEST_STATE);
        const done = allowed && whenAllowed === STATUS.SUCCESS;
        const after = rig.processor.snpGuests()[0]?.state;
        if (done && row.result === 'gone') expect(after).toBe(undefined);
        else expect(after).toBe(done && row.result !== 'same' ? STATES[row.result] : kind);
      });
    }
  }

  it('GUEST_STATUS gives the state’s number, the policy and the ASID', () => {
    const rig = initialised();
    const { SNP_GUEST_STATUS_PAGE } = buffers;
    for (const kind of ['init', 'launch', 'running'] as const) {
      const status = rig.guestStatus(contextIn(rig, kind));
      expect(SNP_GUEST_STATUS_PAGE.state.get(status)).toBe(SNP_GUEST_STATE_NUMBER[kind]);
    }
    const guest = rig.runningGuest(3);
    const status = rig.guestStatus(guest.context);
    expect([SNP_GUEST_STATUS_PAGE.policy.get(status), SNP_GUEST_STATUS_PAGE.asid.get(status)]).toEqual([POLICY, 3]);
  });

  it('every SNP command but the status is refused before SNP_INIT', () => {
    const rig = createSnpRig();
    const context = pfnToHpa(rig.frame().pfn);
    const names = Object.keys(loadRows()).filter((name) => !LEFT_OUT.includes(name));
    for (const name of names)
      if (isCommandName(name)) expect([name, use(rig, name, context)[0]]).toEqual([name, STATUS.INVALID_PLATFORM_STATE]);
  });
});
