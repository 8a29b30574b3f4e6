import { asid as asidOf } from '../../units.js';
import type { AsidRange } from '../asid-keys.js';
import { type Command, guestCommand, input, inputOutput } from '../command.js';
import { ACTIVATE, GUEST_HANDLE, GUEST_STATUS } from '../command-buffers.js';
import { GUEST_STATE_NUMBER } from '../guest-context.js';
import { hasPolicy, POLICY } from '../policy.js';
import { STATUS } from '../status.js';

/** ACTIVATE, DEACTIVATE, DECOMMISSION and GUEST_STATUS (sev-firmware.md 1.3, 2.5). */

/** Plain SEV guests use the upper ASIDs, SEV-ES guests those below the minimum of SEV. */
function isInRange(asid: number, es: boolean, { count, minSev }: AsidRange): boolean {
  return es ? asid >= 1 && asid < minSev && asid <= count : asid >= Math.max(minSev, 1) && asid <= count;
}

const activate = guestCommand({
  name: 'ACTIVATE',
  states: ['launch-update', 'launch-secret', 'running', 'send-update', 'receive-update'],
  buffer: input(ACTIVATE),
  run: ({ firmware: { asidKeys, engine }, guest, buffer }) => {
    const asid = asidOf(ACTIVATE.asid.get(buffer));
    if (!isInRange(asid, hasPolicy(guest.policy, POLICY.ES), asidKeys.range)) return STATUS.INVALID_ASID;
    if (guest.activation?.asid !== asid && asidKeys.keyOf(asid) !== null) return STATUS.ASID_OWNED;
    if (guest.activation !== null) return STATUS.ACTIVE;
    if (asidKeys.isDirty(asid)) return STATUS.DFFLUSH_REQUIRED;
    const key = engine.createKey(`asid ${asid}`, guest.vek);
    asidKeys.load(asid, key);
    guest.activation = { asid, key };
    return STATUS.SUCCESS;
  },
});

/** Deactivating an inactive guest gives INACTIVE; what real firmware answers is not verified. */
const deactivate = guestCommand({
  name: 'DEACTIVATE',
  states: ['launch-update', 'launch-secret', 'running', 'send-update', 'receive-update', 'sent'],
  buffer: input(GUEST_HANDLE),
  run: ({ firmware: { asidKeys }, guest }) => {
    if (guest.activation === null) return STATUS.INACTIVE;
    asidKeys.unload(guest.activation.asid);
    guest.activation = null;
    return STATUS.SUCCESS;
  },
});

const decommission = guestCommand({
  name: 'DECOMMISSION',
  states: ['launch-update', 'launch-secret', 'running', 'send-update', 'receive-update', 'sent'],
  buffer: input(GUEST_HANDLE),
  run: ({ platform, guest }) => {
    if (guest.activation !== null) return STATUS.ACTIVE;
    platform.guests.delete(guest.handle);
    if (platform.guests.size === 0) platform.kind = 'init';
    return STATUS.SUCCESS;
  },
});

const guestStatus = guestCommand({
  name: 'GUEST_STATUS',
  states: ['launch-update', 'launch-secret', 'running', 'send-update', 'receive-update', 'sent'],
  buffer: inputOutput(GUEST_STATUS),
  run: ({ guest, state, buffer }) => {
    GUEST_STATUS.policy.set(buffer, guest.policy);
    GUEST_STATUS.asid.set(buffer, guest.activation?.asid ?? 0);
    GUEST_STATUS.state.set(buffer, GUEST_STATE_NUMBER[state.kind]);
    return STATUS.SUCCESS;
  },
});

export const guestManagementCommands: readonly Command[] = [activate, deactivate, decommission, guestStatus];
