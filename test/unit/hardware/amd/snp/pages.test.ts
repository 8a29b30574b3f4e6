import { describe, expect, it } from 'vitest';
import { RMP_RESULT } from '../../../../../server/hardware/amd/rmp.js';
import * as buffers from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { PAGE_TYPE } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { STATUS } from '../../../../../server/hardware/amd/status.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { hex, set } from '../rig.js';
import { initialised, POLICY, type SnpRig } from './snp-rig.js';

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
