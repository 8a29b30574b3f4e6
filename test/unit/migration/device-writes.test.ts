import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { because } from '../../../server/migration/reason.js';
import { createSevRig } from '../kernel/kvm/svm/sev-rig.js';
import { Migration, plainGuest } from './two-hosts.js';

/** Pages that the guest has never touched. */
const RING = 0x8000;

describe("what a VMM's device writes into guest memory while the guest migrates", () => {
  it('arrives, also where nothing was before, and where a write crosses pages', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = plainGuest(here);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'stopping' || migration.destination.pagesReceived > 0);
    const data = Uint8Array.from({ length: PAGE_SIZE }, (_, index) => index & 0xff);
    here.vmm.write(guest.address + RING + 100, data);
    expect(migration.run()).toBe('sent');
    expect(there.vmm.read(migration.arrived().address + RING + 100, PAGE_SIZE)).toEqual(data);
  });

  it('is of no interest any more once the migration has been given up', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const guest = plainGuest(here);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    migration.source.cancel(because('OPERATOR'));
    expect(migration.run()).toBe('OPERATOR');
    expect(guest.vm.writeLog).toBeNull();
    const again = new Migration(guest, there.vmm);
    expect(again.run()).toBe('sent');
  });

  it('does not travel where the guest and its devices have touched nothing', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const migration = new Migration(plainGuest(here), there.vmm);
    expect(migration.run()).toBe('sent');
    expect(migration.source.statistics(0).pagesSent).toBe(2);
  });
});
