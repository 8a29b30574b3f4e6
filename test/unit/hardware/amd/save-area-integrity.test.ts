import { describe, expect, it } from 'vitest';
import { STATUS } from '../../../../server/hardware/amd/status.js';
import { asid, hpa, hpaToPfn, PAGE_SIZE } from '../../../../server/hardware/units.js';
import { guestInState } from './guests.js';
import { createRig } from './rig.js';

/** An SEV-ES guest in launch with one save area. */
function launched() {
  const rig = createRig();
  rig.init();
  const guest = guestInState(rig, 'launch-update', 3, 4);
  const address = rig.place(new Uint8Array(PAGE_SIZE).fill(9));
  expect(rig.launchUpdate('LAUNCH_UPDATE_VMSA', guest.handle, address, PAGE_SIZE)).toBe(STATUS.SUCCESS);
  const [frame, key] = [rig.dram.at(hpaToPfn(hpa(address))), rig.asidKeys.keyOf(asid(3))];
  if (frame === undefined || key === null) throw new Error('no save area');
  return { rig, guest, frame, key };
}

describe('a save area', () => {
  it('is accepted as the firmware and each exit leave it, however often the host looks', () => {
    const { rig, frame, key } = launched();
    expect(rig.saveAreas.isIntact(frame, key)).toBe(true);
    frame.view(null);
    expect(rig.saveAreas.isIntact(frame, key)).toBe(true);
    frame.viewForWrite(key)[0x178] = 1;
    expect(rig.saveAreas.isIntact(frame, key)).toBe(false);
    rig.saveAreas.record(frame, key);
    expect(rig.saveAreas.isIntact(frame, key)).toBe(true);
  });

  it('is refused when the host has changed its ciphertext or put an old one back', () => {
    const { rig, frame, key } = launched();
    const old = Uint8Array.from(frame.view(null));
    frame.viewForWrite(null)[0] ^= 1;
    expect(rig.saveAreas.isIntact(frame, key)).toBe(false);
    frame.viewForWrite(null).set(old);
    expect(rig.saveAreas.isIntact(frame, key)).toBe(true);
    frame.viewForWrite(key).fill(7);
    rig.saveAreas.record(frame, key);
    frame.viewForWrite(null).set(old);
    expect(rig.saveAreas.isIntact(frame, key)).toBe(false);
  });

  it('is none before LAUNCH_UPDATE_VMSA', () => {
    const { rig, guest, key } = launched();
    const frame = rig.dram.at(hpaToPfn(hpa(guest.page)));
    expect(frame !== undefined && rig.saveAreas.isIntact(frame, key)).toBe(false);
  });
});
