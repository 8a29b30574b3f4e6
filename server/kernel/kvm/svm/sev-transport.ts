import { SEV_CERTIFICATE } from '../../../hardware/amd/certificates.js';
import {
  ACTIVATE,
  GUEST_HANDLE,
  PACKET,
  PDH_CERT_EXPORT,
  RECEIVE_START,
  SEND_START,
} from '../../../hardware/amd/command-buffers.js';
import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { PACKET_HEADER } from '../../../hardware/amd/packet.js';
import { SESSION } from '../../../hardware/amd/session.js';
import { PAGE_SIZE } from '../../../hardware/units.js';
import type { Psp } from '../../drivers/ccp/psp.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { Kernel } from '../../kernel.js';
import type { Page } from '../../mm/page.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';
import { toSevInfo } from './sev-info.js';
import { guestAddressOf } from './sev-send.js';
import { protectState } from './sev-vcpu.js';
import { toSvm } from './vcpu-svm.js';

/**
 * SEND_* and RECEIVE_* for a migration that the daemon itself makes. It issues the firmware's commands rather than KVM's,
 * because KVM_SEV_SEND_UPDATE_VMSA and KVM_SEV_RECEIVE_UPDATE_VMSA are numbers that Linux has reserved and never wired:
 * with its ioctls alone a SEV-ES guest can not be migrated.
 */

/** Bytes of a packet's header. */
export const PACKET_HEADER_BYTES = PACKET_HEADER.size;
const KERNEL_REF = 'sev_transport';

/** What a source's platform checks of the destination's. */
export interface PlatformCertificates {
  readonly pdh: Uint8Array;
  /** PEK, OCA, CEK. */
  readonly chain: Uint8Array;
  /** ASK, ARK. */
  readonly amd: Uint8Array;
}

/** A session of transport keys, wrapped for one platform. */
export interface TransportSession {
  readonly policy: number;
  readonly session: Uint8Array;
}

export interface SealedPage {
  readonly header: Uint8Array;
  readonly data: Uint8Array;
}

const pspOf = ({ psp }: Kernel): Psp => {
  if (psp === null) throw new Error('no secure processor on this host');
  return psp;
};

const run = (kernel: Kernel, name: CommandName, buffer: Uint8Array): Failure | null =>
  pspOf(kernel).run(name, buffer, KERNEL_REF);

/** Puts a blob into a slot of the driver's memory. */
const place = ({ buffers }: Psp, slot: number, blob: Uint8Array): number => {
  buffers.write(buffers.blob(slot), blob);
  return buffers.blob(slot);
};

/** A command that takes nothing but the guest's handle. */
const onGuest = (vm: Vm, name: CommandName): Failure | null => {
  const buffer = new Uint8Array(GUEST_HANDLE.size);
  GUEST_HANDLE.handle.set(buffer, toSevInfo(vm).handle);
  return run(vm.kernel, name, buffer);
};

/** PDH_CERT_EXPORT, and what an operator adds to it from AMD's key server: the CEK with its signature, ASK and ARK. */
export const platformCertificates = (kernel: Kernel): Result<PlatformCertificates> => {
  const { amd } = kernel;
  if (amd === null) return new Failure('ENODEV', 'NO_SECURE_PROCESSOR', KERNEL_REF);
  const psp = pspOf(kernel);
  return psp.withPlatform(() => {
    const length = 3 * SEV_CERTIFICATE.size;
    const buffer = new Uint8Array(PDH_CERT_EXPORT.size);
    PDH_CERT_EXPORT.pdhCertPaddr.set(buffer, psp.buffers.blob(0));
    PDH_CERT_EXPORT.pdhCertLength.set(buffer, SEV_CERTIFICATE.size);
    PDH_CERT_EXPORT.certsPaddr.set(buffer, psp.buffers.blob(1));
    PDH_CERT_EXPORT.certsLength.set(buffer, length);
    const refused = psp.run('PDH_CERT_EXPORT', buffer, KERNEL_REF);
    if (refused !== null) return refused;
    const chain = psp.buffers.read(psp.buffers.blob(1), length);
    const cek = 2 * SEV_CERTIFICATE.size;
    chain.set(amd.keyDistribution.endorseChip(chain.subarray(cek)), cek);
    return { pdh: psp.buffers.read(psp.buffers.blob(0), SEV_CERTIFICATE.size), chain, amd: amd.keyDistribution.bundle() };
  });
};

/** SEND_START: EIO where the firmware does not trust the target, or the guest's policy forbids it (NOSEND, domain, API). */
export const transportSend = (vm: Vm, target: PlatformCertificates): Result<TransportSession> => {
  const psp = pspOf(vm.kernel);
  const buffer = new Uint8Array(SEND_START.size);
  SEND_START.handle.set(buffer, toSevInfo(vm).handle);
  SEND_START.pdhCertPaddr.set(buffer, place(psp, 0, target.pdh));
  SEND_START.pdhCertLength.set(buffer, target.pdh.length);
  SEND_START.platCertsPaddr.set(buffer, place(psp, 1, target.chain));
  SEND_START.platCertsLength.set(buffer, target.chain.length);
  SEND_START.amdCertsPaddr.set(buffer, place(psp, 2, target.amd));
  SEND_START.amdCertsLength.set(buffer, target.amd.length);
  SEND_START.sessionPaddr.set(buffer, psp.buffers.blob(3));
  SEND_START.sessionLength.set(buffer, SESSION.size);
  const refused = run(vm.kernel, 'SEND_START', buffer);
  if (refused !== null) return refused;
  return { policy: SEND_START.policy.get(buffer), session: psp.buffers.read(psp.buffers.blob(3), SESSION.size) };
};

/** RECEIVE_START and ACTIVATE, for a VM that has its ASID. The policy is the source's; KVM does not keep it [D]. */
export const transportReceive = (vm: Vm, { policy, session }: TransportSession, pdh: Uint8Array): Failure | null => {
  const psp = pspOf(vm.kernel);
  const buffer = new Uint8Array(RECEIVE_START.size);
  RECEIVE_START.policy.set(buffer, policy);
  RECEIVE_START.pdhCertPaddr.set(buffer, place(psp, 0, pdh));
  RECEIVE_START.pdhCertLength.set(buffer, pdh.length);
  RECEIVE_START.sessionPaddr.set(buffer, place(psp, 1, session));
  RECEIVE_START.sessionLength.set(buffer, session.length);
  const refused = run(vm.kernel, 'RECEIVE_START', buffer);
  if (refused !== null) return refused;
  // Destroying the VM ends the context from here on.
  toSevInfo(vm).handle = RECEIVE_START.handle.get(buffer);
  return activate(vm);
};

const activate = (vm: Vm): Failure | null => {
  const { handle, asid } = toSevInfo(vm);
  const buffer = new Uint8Array(ACTIVATE.size);
  ACTIVATE.handle.set(buffer, handle);
  ACTIVATE.asid.set(buffer, asid);
  return run(vm.kernel, 'ACTIVATE', buffer);
};

/**
 * The fence of a guest that is being given away: without its key in the slot VMRUN fails, whoever asks for it. What the
 * caches hold under the key is written back while that is possible.
 */
export const deactivate = (vm: Vm): Failure | null => {
  vm.kernel.amd?.wbinvdOnAllCpus();
  return onGuest(vm, 'DEACTIVATE');
};

/** Takes the fence away: the ASID has been dirty since DEACTIVATE. */
export const reactivate = (vm: Vm): Failure | null => pspOf(vm.kernel).dfFlush() ?? activate(vm);

export const sendFinishCommand = (vm: Vm): Failure | null => onGuest(vm, 'SEND_FINISH');
export const sendCancelCommand = (vm: Vm): Failure | null => onGuest(vm, 'SEND_CANCEL');

export const receiveFinishCommand = (vm: Vm): Failure | null => {
  const refused = onGuest(vm, 'RECEIVE_FINISH');
  if (refused === null) vm.kernel.sanitizer.packets.finished(vm);
  return refused;
};

const sealPage = (vm: Vm, page: Page, name: 'SEND_UPDATE_DATA' | 'SEND_UPDATE_VMSA'): Result<SealedPage> => {
  const { buffers } = pspOf(vm.kernel);
  page.frame.flush();
  vm.kernel.costs.charge('clflush_page');
  const buffer = packet(vm, page);
  PACKET.hdrPaddr.set(buffer, buffers.blob(0));
  PACKET.transPaddr.set(buffer, buffers.blob(1));
  const refused = run(vm.kernel, name, buffer);
  if (refused !== null) return refused;
  return { header: buffers.view(buffers.blob(0), PACKET_HEADER.size), data: buffers.view(buffers.blob(1), PAGE_SIZE) };
};

const openPage = (
  vm: Vm,
  page: Page,
  sealed: SealedPage,
  name: 'RECEIVE_UPDATE_DATA' | 'RECEIVE_UPDATE_VMSA',
): Failure | null => {
  const psp = pspOf(vm.kernel);
  // The firmware writes past the caches: no line of the host may be written back over it later.
  page.frame.flush();
  vm.kernel.costs.charge('clflush_page');
  const buffer = packet(vm, page);
  PACKET.hdrPaddr.set(buffer, place(psp, 0, sealed.header));
  PACKET.transPaddr.set(buffer, place(psp, 1, sealed.data));
  return run(vm.kernel, name, buffer);
};

const packet = (vm: Vm, page: Page): Uint8Array => {
  const buffer = new Uint8Array(PACKET.size);
  PACKET.handle.set(buffer, toSevInfo(vm).handle);
  PACKET.hdrLength.set(buffer, PACKET_HEADER.size);
  PACKET.guestPaddr.set(buffer, guestAddressOf(page.frame.hpa));
  PACKET.guestLength.set(buffer, PAGE_SIZE);
  PACKET.transLength.set(buffer, PAGE_SIZE);
  return buffer;
};

/**
 * SEND_UPDATE_DATA of one page of guest memory. What it gives lies in the driver's buffers, until the next command.
 * @param gpa of the page
 */
export const sealGuestPage = (vm: Vm, page: Page, gpa: number): Result<SealedPage> => {
  const sealed = sealPage(vm, page, 'SEND_UPDATE_DATA');
  if (!failed(sealed)) vm.kernel.sanitizer.packets.sent(sealed.header, gpa);
  return sealed;
};

/**
 * RECEIVE_UPDATE_DATA. The firmware checks that the packet is of this session, and not for which address it is.
 * @param gpa of the page
 */
export const openGuestPage = (vm: Vm, page: Page, gpa: number, sealed: SealedPage): Failure | null => {
  const refused = openPage(vm, page, sealed, 'RECEIVE_UPDATE_DATA');
  if (refused !== null) return refused;
  const { contexts, frames, packets } = vm.kernel.sanitizer;
  packets.received(vm, sealed.header, gpa);
  const token = contexts.tokenOf(vm);
  if (token !== null) frames.encrypted(page.frame, token);
  return null;
};

const saveAreaOf = (vcpu: Vcpu): Page => {
  const { saveArea } = toSvm(vcpu).sevEs;
  if (saveArea === null) throw new Error(`vcpu ${vcpu.id} has no save area`);
  return saveArea.page;
};

/** SEND_UPDATE_VMSA of a stopped vCPU's registers; like `sealGuestPage`. */
export const sealSaveArea = (vcpu: Vcpu): Result<SealedPage> => sealPage(vcpu.vm, saveAreaOf(vcpu), 'SEND_UPDATE_VMSA');

/** RECEIVE_UPDATE_VMSA: the registers are in the save area from now on, and KVM's are meaningless. */
export const openSaveArea = (vcpu: Vcpu, sealed: SealedPage): Failure | null => {
  const refused = openPage(vcpu.vm, saveAreaOf(vcpu), sealed, 'RECEIVE_UPDATE_VMSA');
  if (refused === null) protectState(vcpu);
  return refused;
};

/** What of a vCPU of a SEV-ES guest KVM keeps outside the save area. */
export interface SevVcpuState {
  /** GHCB MSR. */
  readonly ghcb: bigint;
  readonly apResetHold: 'none' | 'nae-event' | 'msr-protocol';
  readonly receivedFirstSipi: boolean;
  /** What KVM knows of the guest's mode. */
  readonly cr0: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
}

export const sevVcpuState = (vcpu: Vcpu): SevVcpuState => {
  const { vmcb, sevEs } = toSvm(vcpu);
  const { apResetHold, receivedFirstSipi } = sevEs;
  const { cr0, cr4, efer } = vcpu.arch.state;
  return { ghcb: vmcb.ghcb ?? 0n, apResetHold, receivedFirstSipi, cr0, cr4, efer };
};

/** After `openSaveArea`: what follows is no register of the CPU any more. */
export const restoreSevVcpuState = (vcpu: Vcpu, { ghcb, apResetHold, receivedFirstSipi, ...known }: SevVcpuState): void => {
  const { vmcb, sevEs } = toSvm(vcpu);
  Object.assign(vcpu.arch.state, known);
  vmcb.ghcb = ghcb;
  sevEs.apResetHold = apResetHold;
  sevEs.receivedFirstSipi = receivedFirstSipi;
};
