import { asid as asidOf, PAGE_SIZE } from '../../../units.js';
import { type Command, input } from '../../command.js';
import { STATUS } from '../../status.js';
import { SNP_ACTIVATE, SNP_GCTX, SNP_GUEST_STATUS, SNP_GUEST_STATUS_PAGE } from '../command-buffers.js';
import { snpCommand, snpGuestCommand } from '../snp-command.js';
import { SNP_GUEST_STATE_NUMBER } from '../snp-guest.js';

/** SNP_GCTX_CREATE, SNP_ACTIVATE, SNP_GUEST_STATUS and SNP_DECOMMISSION (sev-firmware.md 2.11). */

const snpGctxCreate = snpCommand({
  name: 'SNP_GCTX_CREATE',
  buffer: input(SNP_GCTX),
  run: ({ memory, rmp, asidKeys, random }, { guests }, buffer) => {
    const frame = memory.frameAt(SNP_GCTX.gctxPaddr.get(buffer));
    if (frame === null) return STATUS.INVALID_ADDRESS;
    if (rmp.state(frame.pfn) !== 'firmware') return STATUS.INVALID_PAGE_STATE;
    if (rmp.entry(frame.pfn).size !== '4k') return STATUS.INVALID_PAGE_SIZE;
    if (guests.size >= asidKeys.range.count) return STATUS.RESOURCE_LIMIT;
    // What a reader on the memory bus sees of a context is ciphertext under a key that never leaves the firmware.
    frame.overwrite(null, random.bytes(PAGE_SIZE));
    rmp.setState(frame.pfn, 'context');
    guests.set(frame.pfn, { page: frame.pfn, activation: null, state: { kind: 'init' } });
    return STATUS.SUCCESS;
  },
});

const snpActivate = snpGuestCommand({
  name: 'SNP_ACTIVATE',
  states: ['launch', 'running'],
  buffer: input(SNP_ACTIVATE),
  run: ({ firmware: { asidKeys, engine }, guest, state, buffer }) => {
    const asid = asidOf(SNP_ACTIVATE.asid.get(buffer));
    if (asid < 1 || asid >= asidKeys.range.minSev || asid > asidKeys.range.count) return STATUS.INVALID_ASID;
    if (guest.activation?.asid !== asid && asidKeys.keyOf(asid) !== null) return STATUS.ASID_OWNED;
    if (guest.activation !== null) return STATUS.ACTIVE;
    if (asidKeys.isDirty(asid)) return STATUS.DFFLUSH_REQUIRED;
    const key = engine.createKey(`asid ${asid}`, state.launch.vek);
    asidKeys.load(asid, key);
    guest.activation = { asid, key };
    return STATUS.SUCCESS;
  },
});

const snpGuestStatus = snpGuestCommand({
  name: 'SNP_GUEST_STATUS',
  states: ['init', 'launch', 'running'],
  buffer: input(SNP_GUEST_STATUS),
  run: ({ firmware: { memory }, guest, state, buffer }) => {
    const page = new Uint8Array(SNP_GUEST_STATUS_PAGE.size);
    SNP_GUEST_STATUS_PAGE.policy.set(page, state.kind === 'init' ? 0n : state.launch.policy);
    SNP_GUEST_STATUS_PAGE.asid.set(page, guest.activation?.asid ?? 0);
    SNP_GUEST_STATUS_PAGE.state.set(page, SNP_GUEST_STATE_NUMBER[state.kind]);
    return memory.write(SNP_GUEST_STATUS.statusPaddr.get(buffer), page, null);
  },
});

/** Unbinds the ASID, too: there is no SNP_DEACTIVATE in use. The context page is the firmware's afterwards, to be reclaimed. */
const snpDecommission = snpGuestCommand({
  name: 'SNP_DECOMMISSION',
  states: ['init', 'launch', 'running'],
  buffer: input(SNP_GCTX),
  run: ({ firmware: { asidKeys, rmp }, platform, guest }) => {
    if (guest.activation !== null) asidKeys.unload(guest.activation.asid);
    platform.guests.delete(guest.page);
    rmp.setState(guest.page, 'firmware');
    return STATUS.SUCCESS;
  },
});

export const snpGuestManagementCommands: readonly Command[] = [snpGctxCreate, snpActivate, snpGuestStatus, snpDecommission];
