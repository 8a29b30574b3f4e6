import { describe, expect, it } from 'vitest';
import { Findings } from '../../../../server/kernel/sanitizer/findings.js';
import { Leaks } from '../../../../server/kernel/sanitizer/leaks.js';
import { createRig } from '../../hardware/amd/rig.js';
import { createSnpRig } from '../../hardware/amd/snp/snp-rig.js';
import { createTestHost } from '../kvm/test-host.js';

describe('contexts of the secure processor that outlive every VM', () => {
  const legacy = () => {
    const rig = createRig();
    rig.init();
    rig.launchStart();
    return rig;
  };
  const snp = () => {
    const rig = createSnpRig();
    rig.snpInit();
    rig.runningGuest();
    return rig;
  };

  it.each([
    ['of a SEV guest', legacy],
    ['of a SEV-SNP guest', snp],
  ])('are found: %s', (_what, make) => {
    const findings = new Findings();
    const leaks = new Leaks(findings, make().processor);
    const { vm } = createTestHost().createVm();
    leaks.destroyed(vm);
    leaks.callEnded(1);
    expect(findings.all.filter(({ kind }) => kind === 'FIRMWARE_CONTEXT_LEAKED')).toEqual([]);
    leaks.callEnded(0);
    expect(findings.all.filter(({ kind }) => kind === 'FIRMWARE_CONTEXT_LEAKED')).toHaveLength(1);
  });
});
