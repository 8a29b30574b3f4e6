import { describe, expect, it } from 'vitest';
import { VMPL_PERMISSION } from '../../../../../server/hardware/amd/rmp.js';
import { SNP_PAGE_MD_INIT, SNP_PAGE_SWAP_IN, SNP_PAGE_SWAP_OUT } from '../../../../../server/hardware/amd/snp/command-buffers.js';
import { PAGE_TYPE } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { METADATA_ENTRY } from '../../../../../server/hardware/amd/snp/swapped-page.js';
import { STATUS, type Status } from '../../../../../server/hardware/amd/status.js';
import type { Frame } from '../../../../../server/hardware/dram.js';
import { asid, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { hex, set } from '../rig.js';
import { createSnpRig, POLICY, type SnpRig } from './snp-rig.js';

const GPA = 0x1000;
const SECRET = new Uint8Array(PAGE_SIZE).fill(0x6b);
const [DATA, METADATA, VMSA, ROOT] = [0, 1 << 1, 2 << 1, 1 << 4];
const IN_PLACE = 1 << 3;

function frameOf(rig: SnpRig, address: number): Frame {
  const frame = rig.dram.at(hpaToPfn(hpa(address)));
  if (frame === undefined) throw new Error('no frame');
  return frame;
}

/** A guest with one launched page, and a page of metadata. */
function prepared(policy = POLICY) {
  const rig = createSnpRig();
  rig.snpInit();
  const { context } = rig.launchContext(1, policy);
  const metadata = rig.firmwarePage().hpa;
  const makeMetadata = (page: number): Status =>
    rig.issue(
      'SNP_PAGE_MD_INIT',
      SNP_PAGE_MD_INIT,
      set(SNP_PAGE_MD_INIT.gctxPaddr, context),
      set(SNP_PAGE_MD_INIT.pagePaddr, page),
    ).status;
  expect(makeMetadata(metadata)).toBe(STATUS.SUCCESS);

  const out = (source: number, destination: number, flags = DATA, entry = metadata): Status =>
    rig.issue(
      'SNP_PAGE_SWAP_OUT',
      SNP_PAGE_SWAP_OUT,
      set(SNP_PAGE_SWAP_OUT.gctxPaddr, context),
      set(SNP_PAGE_SWAP_OUT.srcPaddr, source),
      set(SNP_PAGE_SWAP_OUT.dstPaddr, destination),
      set(SNP_PAGE_SWAP_OUT.mdataPaddr, entry),
      set(SNP_PAGE_SWAP_OUT.softwareData, 0x1234n),
      set(SNP_PAGE_SWAP_OUT.flags, flags),
    ).status;
  const into = (source: number, destination: number, flags = DATA, entry = metadata): Status =>
    rig.issue(
      'SNP_PAGE_SWAP_IN',
      SNP_PAGE_SWAP_IN,
      set(SNP_PAGE_SWAP_IN.gctxPaddr, context),
      set(SNP_PAGE_SWAP_IN.srcPaddr, source),
      set(SNP_PAGE_SWAP_IN.dstPaddr, destination),
      set(SNP_PAGE_SWAP_IN.mdataPaddr, entry),
      set(SNP_PAGE_SWAP_IN.flags, flags),
    ).status;
  /** A page that waits for its contents at a guest address. */
  const waiting = (address = GPA): Frame => {
    const frame = rig.frame();
    rig.rmpupdate(frame, { immutable: true, asid: asid(1), gpa: gpa(address) });
    return frame;
  };
  const takeAside = (address: number, guestAddress = GPA): void =>
    rig.rmpupdate(frameOf(rig, address), { immutable: true, asid: asid(1), gpa: gpa(guestAddress) });
  return { rig, context, metadata, makeMetadata, out, into, waiting, takeAside };
}

describe('a page that is swapped out', () => {
  it('leaves as ciphertext, and comes back to another page with its contents, validation and permissions', () => {
    const { rig, context, metadata, out, into, waiting, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, GPA, SECRET);
    rig.rmp.rmpadjust(hpaToPfn(hpa(page)), asid(1), 0, 1, VMPL_PERMISSION.READ, false);
    takeAside(page);
    const store = rig.firmwarePage();
    expect(out(page, store.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(page)).toBe('reclaim');
    expect(hex(rig.cells(store.hpa, PAGE_SIZE))).not.toContain('6b'.repeat(16));
    expect(METADATA_ENTRY.softwareData.get(rig.cells(metadata, 64))).toBe(0x1234n);
    const target = waiting();
    expect(into(store.hpa, target.hpa)).toBe(STATUS.SUCCESS);
    expect(hex(rig.seenBy(1, target.hpa, PAGE_SIZE))).toBe(hex(SECRET));
    expect(rig.stateOf(target.hpa)).toBe('guest-valid');
    expect(rig.rmp.entry(target.pfn).permissions).toEqual([0xf, VMPL_PERMISSION.READ, 0, 0]);
  });

  it('comes back once, unaltered, and only to its own address', () => {
    const { rig, context, out, into, waiting, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, GPA, SECRET);
    takeAside(page);
    const store = rig.firmwarePage();
    out(page, store.hpa);
    expect(into(store.hpa, waiting(0x2000).hpa)).toBe(STATUS.INVALID_MDATA_ENTRY);
    const copy = Uint8Array.from(rig.cells(store.hpa, PAGE_SIZE));
    copy[7] ^= 1;
    expect(into(rig.place(copy), waiting().hpa)).toBe(STATUS.BAD_MEASUREMENT);
    expect(into(store.hpa, waiting().hpa, VMSA)).toBe(STATUS.INVALID_MDATA_ENTRY);
    expect(into(store.hpa, rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(into(store.hpa, waiting().hpa)).toBe(STATUS.SUCCESS);
    expect(into(store.hpa, waiting().hpa)).toBe(STATUS.INVALID_MDATA_ENTRY);
  });

  it('can be decrypted in place', () => {
    const { rig, context, out, into, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, GPA, SECRET);
    takeAside(page);
    const store = rig.firmwarePage();
    out(page, store.hpa);
    const target = rig.frame();
    target.viewForWrite(null).set(rig.cells(store.hpa, PAGE_SIZE));
    rig.rmpupdate(target, { immutable: true, asid: asid(1), gpa: gpa(GPA) });
    expect(into(0, target.hpa, IN_PLACE)).toBe(STATUS.SUCCESS);
    expect(hex(rig.seenBy(1, target.hpa, 16))).toBe('6b'.repeat(16));
  });

  it('may be a save area, which stays one', () => {
    const { rig, context, out, into, waiting, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.VMSA, 0xfffffffff000, SECRET);
    takeAside(page, 0xfffffffff000);
    const store = rig.firmwarePage();
    expect(out(page, store.hpa, DATA)).toBe(STATUS.INVALID_PARAM);
    expect(out(page, store.hpa, VMSA)).toBe(STATUS.SUCCESS);
    const target = waiting(0xfffffffff000);
    expect(into(store.hpa, target.hpa, VMSA)).toBe(STATUS.SUCCESS);
    expect(rig.rmp.checkVmsa(target.pfn, asid(1))).toBe(null);
  });

  it('may be a page of metadata, whose own entry is the root', () => {
    const { rig, context, metadata, out, into, waiting, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, GPA, SECRET);
    takeAside(page);
    const [store, metadataStore] = [rig.firmwarePage(), rig.firmwarePage()];
    out(page, store.hpa);
    expect(out(metadata, metadataStore.hpa, METADATA | ROOT)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(metadata)).toBe('reclaim');
    const back = rig.firmwarePage();
    expect(into(metadataStore.hpa, back.hpa, METADATA | ROOT)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(back.hpa)).toBe('metadata');
    expect(into(store.hpa, waiting().hpa, DATA, back.hpa)).toBe(STATUS.SUCCESS);
  });

  it('is refused where the policy, the page, its entry or its destination do not allow it', () => {
    const { rig, context, out, makeMetadata, takeAside } = prepared();
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, GPA, SECRET);
    const store = rig.firmwarePage();
    expect(out(page, store.hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    takeAside(page);
    expect(out(page, rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(out(page, store.hpa, DATA, rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    expect(out(page, store.hpa, 3 << 1)).toBe(STATUS.INVALID_PARAM);
    expect(out(page, store.hpa, IN_PLACE)).toBe(STATUS.INVALID_PARAM);
    expect(out(page + 16, store.hpa)).toBe(STATUS.INVALID_ADDRESS);
    expect(makeMetadata(rig.frame().hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    const other = rig.launchContext(2);
    const foreign = rig.firmwarePage().hpa;
    const settings = [set(SNP_PAGE_MD_INIT.gctxPaddr, other.context), set(SNP_PAGE_MD_INIT.pagePaddr, foreign)];
    expect(rig.issue('SNP_PAGE_MD_INIT', SNP_PAGE_MD_INIT, ...settings).status).toBe(STATUS.SUCCESS);
    expect(out(page, store.hpa, DATA, foreign)).toBe(STATUS.INVALID_PAGE_OWNER);
    const closed = prepared(POLICY | (1n << 25n));
    expect(closed.out(0x1000, 0x1000)).toBe(STATUS.POLICY_FAILURE);
    expect(closed.into(0x1000, 0x1000)).toBe(STATUS.POLICY_FAILURE);
  });
});
