import { describe, expect, it } from 'vitest';
import { DOWNLOAD_FIRMWARE, GET_ID, PLATFORM_STATUS } from '../../../../../server/hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../../../server/hardware/amd/command-ids.js';
import { RMP_RESULT } from '../../../../../server/hardware/amd/rmp.js';
import * as buffers from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { SNP_GUEST_STATE_NUMBER, type SnpGuestStateKind } from '../../../../../server/hardware/amd/snp/snp-guest.js';
import { PAGE_TYPE } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { decodeTcb, encodeTcb } from '../../../../../server/hardware/amd/snp/tcb.js';
import { STATUS, type Status } from '../../../../../server/hardware/amd/status.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE, pfnToHpa } from '../../../../../server/hardware/units.js';
import { hex, jsonVector, type Setting, set, VECTORS_NEEDED, vectorsAbsent } from '../rig.js';
import { createSnpRig, POLICY, type SnpRig } from './snp-rig.js';

/** Of SNP_PLATFORM_STATUS: always set. */
const FEATURE_INFO_AVAILABLE = 8;

const { SNP_INIT_EX, SNP_STATUS_PAGE, SNP_CONFIG } = buffers;

function initialised(): SnpRig {
  const rig = createSnpRig();
  rig.snpInit();
  return rig;
}

const initEx = (rig: SnpRig, ...settings: Setting[]) => rig.issue('SNP_INIT_EX', SNP_INIT_EX, ...settings).status;
const INIT_RMP = set(SNP_INIT_EX.flags, 1);

function readStatus(rig: SnpRig) {
  const page = rig.rmp.isActive ? rig.firmwarePage() : rig.frame();
  const { SNP_PLATFORM_STATUS } = buffers;
  const { status } = rig.issue('SNP_PLATFORM_STATUS', SNP_PLATFORM_STATUS, set(SNP_PLATFORM_STATUS.statusPaddr, page.hpa));
  return { status, page, bytes: rig.cells(page.hpa, 32) };
}

describe('SNP_INIT_EX', () => {
  it('wants SNP enabled, with one table, on every CPU, and no CPU that can run guests', () => {
    const rig = createSnpRig();
    expect(initEx(rig, INIT_RMP)).toBe(STATUS.INVALID_CONFIG);
    rig.enableSnp();
    for (const wrong of [{ enabled: false }, { rmpBase: 0 }, { rmpEnd: 1 }, { hsavePa: 0x1000 }]) {
      const before = rig.snpMsrs.read(1);
      rig.snpMsrs.write(1, wrong);
      expect(initEx(rig, INIT_RMP)).toBe(STATUS.INVALID_CONFIG);
      rig.snpMsrs.write(1, before);
    }
    expect(initEx(rig)).toBe(STATUS.RMP_INIT_REQUIRED);
    expect(initEx(rig, set(SNP_INIT_EX.flags, 8))).toBe(STATUS.INVALID_PARAM);
    expect(initEx(rig, INIT_RMP)).toBe(STATUS.SUCCESS);
    expect(initEx(rig, INIT_RMP)).toBe(STATUS.INVALID_PLATFORM_STATE);
  });

  it('comes after the firmware was updated', () => {
    const rig = initialised();
    const update = () => rig.issue('DOWNLOAD_FIRMWARE', DOWNLOAD_FIRMWARE, set(DOWNLOAD_FIRMWARE.fwLength, 1)).status;
    expect(update()).toBe(STATUS.INVALID_PLATFORM_STATE);
    const fresh = createSnpRig();
    expect(fresh.issue('DOWNLOAD_FIRMWARE', DOWNLOAD_FIRMWARE, set(DOWNLOAD_FIRMWARE.fwLength, 1)).status).toBe(
      STATUS.INVALID_LENGTH,
    );
  });

  it('comes before INIT', () => {
    const rig = createSnpRig();
    rig.enableSnp();
    rig.legacyInit();
    expect(initEx(rig, INIT_RMP)).toBe(STATUS.INVALID_PLATFORM_STATE);
  });

  it('fixes the pages of its list to the hypervisor', () => {
    const rig = createSnpRig();
    rig.enableSnp();
    const list = new Uint8Array(8 + 16);
    list[0] = 1;
    new DataView(list.buffer).setBigUint64(8, 0x300000n, true);
    list[16] = 2;
    const listed = [set(SNP_INIT_EX.flags, 3), set(SNP_INIT_EX.listPaddr, rig.place(list))];
    expect(initEx(rig, ...listed)).toBe(STATUS.SUCCESS);
    for (const [address, state] of [
      [0x300000, 'hv-fixed'],
      [0x301000, 'hv-fixed'],
      [0x302000, 'hypervisor'],
    ] as const) {
      expect(rig.stateOf(address)).toBe(state);
    }
    const update = { assigned: true, size: '4k', immutable: false, asid: asid(1), gpa: gpa(0) } as const;
    expect(rig.rmp.rmpupdate(hpaToPfn(hpa(0x300000)), update)).toBe(RMP_RESULT.FAIL_PERMISSION);
  });

  it('takes a list of one page, whatever its ranges are', () => {
    const rig = createSnpRig();
    rig.enableSnp();
    const list = new Uint8Array(PAGE_SIZE);
    const view = new DataView(list.buffer);
    const listed = () => initEx(rig, set(SNP_INIT_EX.flags, 3), set(SNP_INIT_EX.listPaddr, rig.place(list)));
    view.setUint32(0, 256, true);
    expect(listed()).toBe(STATUS.INVALID_PARAM);
    view.setUint32(0, 255, true);
    for (let index = 0; index < 255; index++) view.setUint32(8 + index * 16 + 8, 0xffff_ffff, true);
    expect(listed()).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(0x7fff_f000)).toBe('hv-fixed');
  });
});

describe('SNP_PLATFORM_STATUS', () => {
  it('works before and after initialisation, on a page of the firmware’s, which goes back to the host', () => {
    const rig = createSnpRig();
    const before = readStatus(rig);
    expect([before.status, SNP_STATUS_PAGE.state.get(before.bytes), SNP_STATUS_PAGE.rmpFlags.get(before.bytes)]).toEqual([
      0, 0, 0,
    ]);
    rig.snpInit();
    rig.createContext();
    const after = readStatus(rig);
    expect([after.status, SNP_STATUS_PAGE.state.get(after.bytes), SNP_STATUS_PAGE.guestCount.get(after.bytes)]).toEqual([
      0, 1, 1,
    ]);
    expect(SNP_STATUS_PAGE.build.get(after.bytes)).toBe(25);
    expect(rig.stateOf(after.page.hpa)).toBe('reclaim');
    const { SNP_PLATFORM_STATUS } = buffers;
    const onOwnPage = rig.issue(
      'SNP_PLATFORM_STATUS',
      SNP_PLATFORM_STATUS,
      set(SNP_PLATFORM_STATUS.statusPaddr, rig.frame().hpa),
    );
    expect(onOwnPage.status).toBe(STATUS.INVALID_PAGE_STATE);
  });
});

describe('SNP_FEATURE_INFO', () => {
  const { SNP_FEATURE_INFO } = buffers;
  const ask = (rig: SnpRig, address: number, length = 16, subFunction = 0) => {
    const settings = [
      set(SNP_FEATURE_INFO.length, length),
      set(SNP_FEATURE_INFO.ecxIn, subFunction),
      set(SNP_FEATURE_INFO.featureInfoPaddr, address),
    ];
    return rig.issue('SNP_FEATURE_INFO', SNP_FEATURE_INFO, ...settings).status;
  };

  it('says what the firmware does, and nothing else: the legacy commands, a shutdown of the table, a policy with CXL', () => {
    const rig = createSnpRig();
    const page = rig.frame();
    expect(ask(rig, page.hpa + 8)).toBe(STATUS.SUCCESS);
    expect(hex(rig.cells(page.hpa, 32))).toBe(`${'00'.repeat(8)}00000000010000002200000000000000${'00'.repeat(8)}`);
  });

  it('wants its own length, sub-function 0, and room for the answer that is aligned to 8 bytes in one page', () => {
    const rig = createSnpRig();
    const page = rig.frame();
    rig.frame();
    expect(ask(rig, page.hpa, 12)).toBe(STATUS.INVALID_LENGTH);
    expect(ask(rig, page.hpa, 16, 1)).toBe(STATUS.INVALID_PARAM);
    expect(ask(rig, page.hpa + 4)).toBe(STATUS.INVALID_ADDRESS);
    expect(ask(rig, page.hpa + PAGE_SIZE - 8)).toBe(STATUS.INVALID_ADDRESS);
    expect(ask(rig, page.hpa + PAGE_SIZE - 16)).toBe(STATUS.SUCCESS);
  });

  it('wants a page of the firmware’s while SNP is initialised, and gives it back', () => {
    const rig = initialised();
    expect(ask(rig, rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    const page = rig.firmwarePage();
    expect(ask(rig, page.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(page.hpa)).toBe('reclaim');
  });
});

describe('a platform on which SNP is not initialised', () => {
  const ALLOWED: readonly CommandName[] = ['SNP_INIT', 'SNP_INIT_EX', 'SNP_PLATFORM_STATUS', 'SNP_FEATURE_INFO'];
  const names = Object.keys(COMMAND).filter((name): name is CommandName => name.startsWith('SNP_'));

  it.each(names.filter((name) => !ALLOWED.includes(name)))('refuses %s', (name) => {
    const rig = createSnpRig();
    rig.enableSnp();
    const buffer = rig.place(new Uint8Array(PAGE_SIZE));
    expect(rig.processor.issue(COMMAND[name], hpa(buffer))).toBe(STATUS.INVALID_PLATFORM_STATE);
  });

  it('is what a shutdown leaves, once, and can be initialised again', () => {
    const rig = initialised();
    const { SNP_SHUTDOWN_EX } = buffers;
    rig.wbinvdOnAllCpus();
    rig.issue('SNP_DF_FLUSH');
    const shutdown = () => rig.issue('SNP_SHUTDOWN_EX', SNP_SHUTDOWN_EX, set(SNP_SHUTDOWN_EX.length, 8)).status;
    expect([shutdown(), shutdown()]).toEqual([STATUS.SUCCESS, STATUS.INVALID_PLATFORM_STATE]);
    rig.snpInit();
  });
});

describe('SNP_SHUTDOWN_EX', () => {
  it('destroys all guests, and is refused until caches and fabric are flushed', () => {
    const rig = initialised();
    const { context } = rig.runningGuest();
    const { SNP_SHUTDOWN_EX } = buffers;
    const shutdown = () =>
      rig.issue('SNP_SHUTDOWN_EX', SNP_SHUTDOWN_EX, set(SNP_SHUTDOWN_EX.length, 8), set(SNP_SHUTDOWN_EX.flags, 3)).status;
    expect(rig.issue('SNP_SHUTDOWN_EX', SNP_SHUTDOWN_EX).status).toBe(STATUS.INVALID_LENGTH);
    const reserved = [set(SNP_SHUTDOWN_EX.length, 8), set(SNP_SHUTDOWN_EX.flags, 4)];
    expect(rig.issue('SNP_SHUTDOWN_EX', SNP_SHUTDOWN_EX, ...reserved).status).toBe(STATUS.INVALID_PARAM);
    expect(shutdown()).toBe(STATUS.DFFLUSH_REQUIRED);
    expect(rig.issue('SNP_DF_FLUSH').status).toBe(STATUS.WBINVD_REQUIRED);
    rig.wbinvdOnAllCpus();
    expect(rig.issue('SNP_DF_FLUSH').status).toBe(STATUS.SUCCESS);
    expect(shutdown()).toBe(STATUS.SUCCESS);
    expect(rig.processor.snpGuests()).toEqual([]);
    expect(rig.asidKeys.loaded()).toEqual([]);
    expect(rig.rmp.isActive).toBe(false);
    expect(rig.stateOf(context)).toBe('hypervisor');
    rig.snpInit();
  });
});

describe('SNP_CONFIG and SNP_COMMIT', () => {
  const CURRENT = encodeTcb({ bootLoader: 4, tee: 0, snp: 22, microcode: 213 });

  it('report at most the committed version', () => {
    const rig = initialised();
    const config = (tcb: bigint, flags = 0) =>
      rig.issue('SNP_CONFIG', SNP_CONFIG, set(SNP_CONFIG.reportedTcb, tcb), set(SNP_CONFIG.flags, flags)).status;
    const reported = () => SNP_STATUS_PAGE.reportedTcb.get(readStatus(rig).bytes);
    const older = encodeTcb({ bootLoader: 4, tee: 0, snp: 21, microcode: 213 });
    expect(config(older)).toBe(STATUS.SUCCESS);
    expect(reported()).toBe(older);
    expect(config(encodeTcb({ bootLoader: 3, tee: 0, snp: 23, microcode: 0 }))).toBe(STATUS.INVALID_PARAM);
    expect(config(older | (1n << 16n))).toBe(STATUS.INVALID_PARAM);
    expect(config(older, 4)).toBe(STATUS.INVALID_PARAM);
    expect(config(0n, 3)).toBe(STATUS.SUCCESS);
    expect(reported()).toBe(CURRENT);
    expect(SNP_STATUS_PAGE.flags.get(readStatus(rig).bytes)).toBe(3 | FEATURE_INFO_AVAILABLE);
    expect(decodeTcb(CURRENT)).toEqual({ bootLoader: 4, tee: 0, snp: 22, microcode: 213 });
  });

  it('commit what runs, which reports claim then, and leave what they hide', () => {
    const rig = initialised();
    const status = () => {
      const { bytes } = readStatus(rig);
      return [SNP_STATUS_PAGE.reportedTcb.get(bytes), SNP_STATUS_PAGE.flags.get(bytes)];
    };
    expect(rig.issue('SNP_CONFIG', SNP_CONFIG, set(SNP_CONFIG.reportedTcb, 3n), set(SNP_CONFIG.flags, 1)).status).toBe(
      STATUS.SUCCESS,
    );
    expect(rig.issue('SNP_COMMIT', buffers.SNP_COMMIT).status).toBe(STATUS.INVALID_LENGTH);
    expect(status()).toEqual([3n, 1 | FEATURE_INFO_AVAILABLE]);
    expect(rig.issue('SNP_COMMIT', buffers.SNP_COMMIT, set(buffers.SNP_COMMIT.length, 4)).status).toBe(STATUS.SUCCESS);
    expect(status()).toEqual([CURRENT, 1 | FEATURE_INFO_AVAILABLE]);
  });
});

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

describe('legacy commands while SNP is initialised', () => {
  it('write only to pages of the firmware’s: outputs, and command buffers that have some', () => {
    const rig = initialised();
    expect(rig.issue('PLATFORM_STATUS', PLATFORM_STATUS).status).toBe(STATUS.INVALID_PAGE_STATE);
    rig.legacyInit();
    const buffer = rig.firmwarePage();
    expect(rig.processor.issue(COMMAND.PLATFORM_STATUS, buffer.hpa)).toBe(STATUS.SUCCESS);
    expect(PLATFORM_STATUS.state.get(rig.cells(buffer.hpa, PLATFORM_STATUS.size))).toBe(1);
    GET_ID.idLength.set(buffer.view(null), 64);
    GET_ID.idPaddr.set(buffer.view(null), rig.frame().hpa);
    expect(rig.processor.issue(COMMAND.GET_ID, buffer.hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    GET_ID.idPaddr.set(buffer.view(null), rig.firmwarePage().hpa);
    expect(rig.processor.issue(COMMAND.GET_ID, buffer.hpa)).toBe(STATUS.SUCCESS);
  });
});

describe('pages', () => {
  const page = (rig: SnpRig, name: 'SNP_PAGE_RECLAIM' | 'SNP_PAGE_UNSMASH', address: number) =>
    rig.issue(name, buffers.SNP_PAGE, set(buffers.SNP_PAGE.pagePaddr, address)).status;

  it('of the firmware and those that wait can be reclaimed, others cannot', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const firmware = rig.firmwarePage();
    expect(page(rig, 'SNP_PAGE_RECLAIM', firmware.hpa + 1)).toBe(STATUS.INVALID_ADDRESS);
    expect(page(rig, 'SNP_PAGE_RECLAIM', firmware.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(firmware.hpa)).toBe('reclaim');
    const waiting = rig.frame();
    rig.rmpupdate(waiting, { immutable: true, asid: asid(1), gpa: gpa(0x1000) });
    expect(page(rig, 'SNP_PAGE_RECLAIM', waiting.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(waiting.hpa)).toBe('guest-invalid');
    const launched = rig.launchPage(context, 1, PAGE_TYPE.ZERO, 0x2000);
    for (const address of [context, launched, rig.frame().hpa])
      expect(page(rig, 'SNP_PAGE_RECLAIM', address)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(page(rig, 'SNP_PAGE_UNSMASH', launched - (launched % 0x20_0000))).toBe(STATUS.INVALID_ADDRESS);
  });

  it('of 2 MiB are launched as 512 steps, and can be split and joined', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const frames = Array.from({ length: 1024 }, () => rig.frame());
    const head = frames.find((frame) => frame.pfn % 512 === 0);
    if (head === undefined) throw new Error('no aligned frame');
    rig.rmpupdate(head, { size: '2m', immutable: true, asid: asid(1), gpa: gpa(0x40_0000) });
    expect(rig.launchUpdate(context, PAGE_TYPE.ZERO, head.hpa)).toBe(STATUS.INVALID_PAGE_SIZE);
    const { SNP_LAUNCH_UPDATE } = buffers;
    const settings = [set(SNP_LAUNCH_UPDATE.gctxPaddr, context), set(SNP_LAUNCH_UPDATE.flags, 1 | (PAGE_TYPE.ZERO << 1))];
    expect(
      rig.issue('SNP_LAUNCH_UPDATE', SNP_LAUNCH_UPDATE, ...settings, set(SNP_LAUNCH_UPDATE.pagePaddr, head.hpa)).status,
    ).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(head.hpa + 100 * PAGE_SIZE)).toBe('guest-valid');
    expect(rig.rmp.psmash(head.pfn)).toBe(RMP_RESULT.OK);
    expect(page(rig, 'SNP_PAGE_UNSMASH', head.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.rmp.entry(head.pfn).size).toBe('2m');
  });

  it('that the host takes aside can be moved in DRAM without the guest’s noticing', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const source = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, 0x1000, new Uint8Array(PAGE_SIZE).fill(0x77));
    const destination = rig.frame();
    const move = () => {
      const { SNP_PAGE_MOVE } = buffers;
      const settings = [set(SNP_PAGE_MOVE.gctxPaddr, context), set(SNP_PAGE_MOVE.srcPaddr, source)];
      return rig.issue('SNP_PAGE_MOVE', SNP_PAGE_MOVE, ...settings, set(SNP_PAGE_MOVE.dstPaddr, destination.hpa)).status;
    };
    expect(move()).toBe(STATUS.INVALID_PAGE_STATE);
    const frame = rig.dram.at(hpaToPfn(hpa(source)));
    if (frame === undefined) throw new Error('no frame');
    rig.rmpupdate(frame, { immutable: true, asid: asid(1), gpa: gpa(0x1000) });
    rig.rmpupdate(destination, { immutable: true, asid: asid(1), gpa: gpa(0x1000) });
    expect(move()).toBe(STATUS.SUCCESS);
    expect([rig.stateOf(source), rig.stateOf(destination.hpa)]).toEqual(['reclaim', 'guest-valid']);
    expect(hex(rig.seenBy(1, destination.hpa, 16))).toBe('77'.repeat(16));
  });

  it('of a guest with DEBUG can be read and written by the host, those of others cannot', () => {
    const rig = initialised();
    const debug = (name: 'SNP_DBG_DECRYPT' | 'SNP_DBG_ENCRYPT', context: number, source: number, destination: number) => {
      const { SNP_DBG } = buffers;
      const settings = [set(SNP_DBG.gctxPaddr, context), set(SNP_DBG.srcPaddr, source), set(SNP_DBG.dstPaddr, destination)];
      return rig.issue(name, SNP_DBG, ...settings).status;
    };
    const open = rig.launchContext(1, POLICY | (1n << 19n));
    const closed = rig.launchContext(2);
    const private1 = rig.launchPage(open.context, 1, PAGE_TYPE.NORMAL, 0x1000, new Uint8Array(PAGE_SIZE).fill(0x77));
    const private2 = rig.launchPage(closed.context, 2, PAGE_TYPE.NORMAL, 0x1000);
    const own = rig.firmwarePage();
    expect(debug('SNP_DBG_DECRYPT', open.context, private1, own.hpa)).toBe(STATUS.SUCCESS);
    expect(hex(rig.cells(own.hpa, 16))).toBe('77'.repeat(16));
    expect(debug('SNP_DBG_DECRYPT', open.context, private1, rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(debug('SNP_DBG_DECRYPT', open.context, private2, own.hpa)).toBe(STATUS.INVALID_PAGE_OWNER);
    expect(debug('SNP_DBG_DECRYPT', closed.context, private2, own.hpa)).toBe(STATUS.POLICY_FAILURE);
    expect(debug('SNP_DBG_ENCRYPT', open.context, rig.place(new Uint8Array(PAGE_SIZE).fill(0x88)), private1)).toBe(
      STATUS.SUCCESS,
    );
    expect(hex(rig.seenBy(1, private1, 16))).toBe('88'.repeat(16));
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
