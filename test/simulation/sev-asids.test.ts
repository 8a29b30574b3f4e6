import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../server/kernel/config.js';
import { KVM_EXIT } from '../../server/kernel/uapi/constants.js';
import { RAM_BYTES } from '../unit/kernel/kvm/svm/es-guest.js';
import { createSevRig, type Guest, type Vmm } from '../unit/kernel/kvm/svm/sev-rig.js';
import { createSnpGuest, createSnpHost, run } from '../unit/kernel/kvm/svm/snp/snp-guest.js';

/** ASIDs of the host: 1 to 8 for SEV-ES, 9 to 16 for SEV. */
const ASIDS = 16;
const MIN_SEV_ASID = 9;
const CYCLES = 10_000;
/** An SNP guest cannot be moved: it is launched and run instead. */
const SNP_CYCLES = 100;

const closeGuest = ({ vmm, fd, vcpus }: Guest): void => {
  for (const vcpu of vcpus) vmm.process.close(vcpu.fd);
  vmm.process.close(fd);
};

/** A guest is made, launched and moved, and both VMs are destroyed; the source dies before or after the destination. */
const cycle = (vmm: Vmm, es: boolean, sourceFirst: boolean): void => {
  const source = vmm.createSevGuest({ es });
  if (es) vmm.must(vmm.command(source.fd, 'LAUNCH_UPDATE_VMSA'));
  vmm.must(vmm.command(source.fd, 'LAUNCH_FINISH'));
  const destination = vmm.createGuest(1);
  expect(vmm.tryMove(destination.fd, source.fd)).toBe(0);
  for (const guest of sourceFirst ? [source, destination] : [destination, source]) closeGuest(guest);
};

describe('ASIDs', () => {
  it(`${CYCLES} guests come and go on a host with ${ASIDS}, and none is handed out again without its flush`, () => {
    const { vmm, host } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, asids: ASIDS, minSevAsid: MIN_SEV_ASID } });
    const { amd, findings, costs, dram } = host.kernel;
    cycle(vmm, true, true);
    const frames = dram.used;
    for (let index = 1; index < CYCLES; index++) cycle(vmm, index % 8 === 0, index % 3 === 0);
    expect(findings.all).toEqual([]);
    expect(amd?.asidKeys.loaded()).toEqual([]);
    expect(amd?.processor.guests()).toEqual([]);
    expect(dram.used).toBe(frames);
    // Eight ASIDs of a kind serve eight guests between two flushes.
    expect(costs.counts.get('psp_DF_FLUSH')).toBeGreaterThanOrEqual(CYCLES / ASIDS - 2);
    expect(costs.counts.get('psp_DF_FLUSH')).toBeLessThanOrEqual(CYCLES / (ASIDS / 2) + 2);
  });

  it(`${SNP_CYCLES} SNP guests come and go on the eight ASIDs that they share with SEV-ES, and leave nothing`, () => {
    const { vmm, host } = createSnpHost({
      sev: { ...DEFAULT_HOST_CONFIG.sev, snp: true, asids: ASIDS, minSevAsid: MIN_SEV_ASID },
    });
    const { amd, findings, costs, dram } = host.kernel;
    const live = () => {
      const guest = createSnpGuest(vmm, { code: [] });
      expect(run(guest)).toBe(KVM_EXIT.HLT);
      closeGuest(guest);
      vmm.process.close(guest.gmemFd);
      expect(vmm.mm.munmap(guest.address, RAM_BYTES)).toBeNull();
    };
    live();
    const frames = dram.used;
    for (let index = 1; index < SNP_CYCLES; index++) live();
    expect(findings.all).toEqual([]);
    expect(amd?.asidKeys.loaded()).toEqual([]);
    expect(amd?.processor.snpGuests()).toEqual([]);
    expect(dram.used).toBe(frames);
    expect(costs.counts.get('psp_SNP_DF_FLUSH')).toBeGreaterThanOrEqual(SNP_CYCLES / (ASIDS / 2) - 2);
  });

  it('that are all in use are EBUSY, until one guest ends', () => {
    const { vmm } = createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, asids: ASIDS, minSevAsid: MIN_SEV_ASID } });
    for (const es of [false, true]) {
      const guests = Array.from({ length: ASIDS / 2 }, () => vmm.createSevGuest({ es }));
      const late = vmm.createGuest(0);
      const init = () => vmm.command(late.fd, es ? 'ES_INIT' : 'INIT').result;
      expect(init()).toBe('EBUSY');
      const [first] = guests;
      if (first !== undefined) closeGuest(first);
      expect(init()).toBe(0);
    }
  });
});
