import { describe, expect, it } from 'vitest';
import { DOWNLOAD_FIRMWARE, GET_ID, PLATFORM_STATUS } from '../../../../../server/hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../../../server/hardware/amd/command-ids.js';
import { RMP_RESULT } from '../../../../../server/hardware/amd/rmp.js';
import * as buffers from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { decodeTcb, encodeTcb } from '../../../../../server/hardware/amd/snp/tcb.js';
import { STATUS } from '../../../../../server/hardware/amd/status.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { hex, type Setting, set } from '../rig.js';
import { createSnpRig, initialised, type SnpRig } from './snp-rig.js';

/** Of SNP_PLATFORM_STATUS: always set. */
const FEATURE_INFO_AVAILABLE = 8;

const { SNP_INIT_EX, SNP_STATUS_PAGE, SNP_CONFIG } = buffers;

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
