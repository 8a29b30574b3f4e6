import { createHash } from 'node:crypto';
import { KvmMpStateValue, SevPolicyBit } from '../../index.js';
import type { GuestImage } from '../guest/image.js';
import type { Encryption, Vmm } from './vmm.js';
import { expectedSaveArea } from './vmsa.js';

/** Of an attestation report (SEV API specification, 6.8): where the launch digest is, and the length of all. */
const REPORT = { DIGEST: 16, DIGEST_BYTES: 32, BYTES: 208 } as const;
const NONCE_BYTES = 16;
const MEASUREMENT_BYTES = 48;

/** What a launch was measured as. */
export interface Launch {
  readonly digest: string;
  /** What the guest's owner computes from image and registers. */
  readonly expectedDigest: string;
}

/** KVM_SET_SREGS and KVM_SET_REGS to the image's start; every vCPU may run. */
const setStart = async ({ vcpus }: Vmm, { start }: GuestImage): Promise<void> => {
  if (start === null) return;
  for (const [id, vcpu] of vcpus.entries()) {
    const { sregs, regs } = start(id, await vcpu.getSregs());
    await vcpu.setSregs(sregs);
    await vcpu.setRegs(regs);
    await vcpu.setMpState({ mp_state: KvmMpStateValue.KVM_MP_STATE_RUNNABLE });
  }
};

/**
 * Launches the image in a VM that is an encrypted guest: registers its memory, has the content and (SEV-ES) the registers
 * measured and encrypted, and compares what was measured with what was meant.
 */
export const launch = async (vmm: Vmm, encryption: Encryption, image: GuestImage): Promise<Launch> => {
  const { vm, memory, process, vcpus } = vmm;
  const expected = createHash('sha256');
  const sev = await process.openSev();
  for (const { gpa, size } of memory.slots) await vm.memoryEncryptRegRegion({ addr: memory.userspaceAddress(gpa), size });
  const policy = SevPolicyBit.SEV_POLICY_NODBG | (encryption === 'SEV-ES' ? SevPolicyBit.SEV_POLICY_ES : 0);
  await vm.sev.launchStart({ policy }, sev.fd);
  for (const { gpa, bytes } of image.segments) {
    const uaddr = memory.userspaceAddress(BigInt(gpa));
    await process.memory.load(uaddr, bytes);
    await vm.sev.launchUpdateData({ uaddr, len: bytes.length });
    expected.update(bytes);
  }
  await setStart(vmm, image);
  if (encryption === 'SEV-ES') {
    for (const vcpu of vcpus) expected.update(expectedSaveArea(await vcpu.getRegs(), await vcpu.getSregs(), await vcpu.getFpu()));
    await vm.sev.launchUpdateVmsa();
  }
  const { uaddr_bytes: report } = await vm.sev.getAttestationReport({ mnonce: new Uint8Array(NONCE_BYTES), len: REPORT.BYTES });
  await vm.sev.launchMeasure({ len: MEASUREMENT_BYTES });
  await vm.sev.launchFinish();
  await sev.close();
  const digest = report.subarray(REPORT.DIGEST, REPORT.DIGEST + REPORT.DIGEST_BYTES);
  return { digest: Buffer.from(digest).toString('hex'), expectedDigest: expected.digest('hex') };
};
