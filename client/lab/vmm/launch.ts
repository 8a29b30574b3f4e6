import { randomBytes } from 'node:crypto';
import { guestOwner, KvmMpStateValue, type SevPlatform, SevPolicyBit, type Vm } from '../../index.js';
import type { GuestImage } from '../guest/image.js';
import type { Encryption, Vmm } from './vmm.js';
import { expectedSaveArea } from './vmsa.js';

const NONCE_BYTES = 16;
const MEASUREMENT_BYTES = 48;
/**
 * An attestation report, and a certificate of the platform's chain, the first of which is the PEK (SEV API, 6.8 and appendix C).
 */
const [REPORT_BYTES, CERTIFICATE_BYTES] = [208, 2084];

/** What a launch was measured as. */
export interface Launch {
  /** In the attestation report; null: its signature is not the platform's. */
  readonly digest: string | null;
  /** What the guest's owner computes from image and registers. */
  readonly expectedDigest: string;
  /** Whether LAUNCH_MEASURE authenticates the expected digest under the key that only owner and platform have. */
  readonly measurementVerifies: boolean;
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

/** The launch digest by the attestation report, whose signature is verified with the platform's PEK. */
const reportedDigest = async (vm: Vm, pek: Uint8Array): Promise<string | null> => {
  const mnonce = new Uint8Array(randomBytes(NONCE_BYTES));
  const { uaddr_bytes: bytes } = await vm.sev.getAttestationReport({ mnonce, len: REPORT_BYTES });
  const report = guestOwner.verifySevReport(bytes, mnonce, pek);
  return report === null ? null : Buffer.from(report.digest).toString('hex');
};

/** Whether KVM_SEV_LAUNCH_MEASURE gives what the owner, who knows `tik`, expects of a launch. */
const measureAndVerify = async (
  vm: Vm,
  sev: SevPlatform,
  tik: Uint8Array,
  launched: { readonly policy: number; readonly digest: Uint8Array },
): Promise<boolean> => {
  const { uaddr_bytes: measurement } = await vm.sev.launchMeasure({ len: MEASUREMENT_BYTES });
  const { api_major: apiMajor, api_minor: apiMinor, build } = await sev.platformStatus();
  return guestOwner.verifyMeasurement(measurement, tik, { apiMajor, apiMinor, build, ...launched });
};

/**
 * Launches the image in a VM that is an encrypted guest, with a session that the guest's owner has made for this platform:
 * registers its memory, has the content and (SEV-ES) the registers measured and encrypted, and lets the owner compare what
 * was measured with what was meant.
 */
export const launch = async (vmm: Vmm, encryption: Encryption, image: GuestImage): Promise<Launch> => {
  const { vm, memory, process, vcpus } = vmm;
  const parts: Uint8Array[] = [];
  await using sev = await process.openSev();
  for (const { gpa, size } of memory.slots) await vm.memoryEncryptRegRegion({ addr: memory.userspaceAddress(gpa), size });
  const policy = SevPolicyBit.SEV_POLICY_NODBG | (encryption === 'SEV-ES' ? SevPolicyBit.SEV_POLICY_ES : 0);
  const { pdh_cert_address_bytes: pdh, cert_chain_address_bytes: chain } = await sev.pdhCertExport();
  const { certificate, session, keys } = guestOwner.createLaunchSession({ pdh, policy });
  await vm.sev.launchStart({ policy, dh_uaddr_bytes: certificate, session_uaddr_bytes: session }, sev.fd);
  for (const { gpa, bytes } of image.segments) {
    const uaddr = memory.userspaceAddress(BigInt(gpa));
    await process.memory.load(uaddr, bytes);
    await vm.sev.launchUpdateData({ uaddr, len: bytes.length });
    parts.push(bytes);
  }
  await setStart(vmm, image);
  if (encryption === 'SEV-ES') {
    for (const vcpu of vcpus) parts.push(expectedSaveArea(await vcpu.getRegs(), await vcpu.getSregs(), await vcpu.getFpu()));
    await vm.sev.launchUpdateVmsa();
  }
  const expected = guestOwner.launchDigest(...parts);
  const digest = await reportedDigest(vm, chain.subarray(0, CERTIFICATE_BYTES));
  const measurementVerifies = await measureAndVerify(vm, sev, keys.tik, { policy, digest: expected });
  await vm.sev.launchFinish();
  return { digest, expectedDigest: Buffer.from(expected).toString('hex'), measurementVerifies };
};
