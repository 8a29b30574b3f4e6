import {
  ACTIVATE,
  ATTESTATION,
  GUEST_HANDLE,
  GUEST_STATUS,
  LAUNCH_MEASURE,
  LAUNCH_START,
  LAUNCH_UPDATE,
  PACKET,
} from '../../../hardware/amd/command-buffers.js';
import { SEV_FW_BLOB_MAX_SIZE } from '../../drivers/ccp/firmware-buffers.js';
import { Failure, failed } from '../../failure.js';
import {
  kvm_sev_attestation_report,
  kvm_sev_guest_status,
  kvm_sev_launch_measure,
  kvm_sev_launch_secret,
  kvm_sev_launch_start,
  kvm_sev_launch_update_data,
} from '../../uapi/sev-structs.js';
import {
  copyBlob,
  copyParams,
  copyParamsOut,
  issue,
  issueOnFd,
  placeBlob,
  requireSevGuest,
  type SevCall,
  type SevHandler,
  writtenBlob,
} from './sev-command.js';
import { clflushPages, contiguousChunks, pinMemory, unpinMemory } from './sev-memory.js';

/** `sev_bind_asid`: ACTIVATE; a guest that cannot be activated is decommissioned. */
export const bindAsid = (call: SevCall, handle: number): Failure | null => {
  const { module, sev } = call;
  const buffer = new Uint8Array(ACTIVATE.size);
  ACTIVATE.handle.set(buffer, handle);
  ACTIVATE.asid.set(buffer, sev.asid);
  const refused = issueOnFd(call, call.sevFd, 'ACTIVATE', buffer, 'sev_bind_asid');
  if (refused !== null) decommission(module, handle);
  return refused;
};

/** DECOMMISSION; what the firmware says is of no use to anybody. */
const decommission = ({ psp }: SevCall['module'], handle: number): void => {
  const buffer = new Uint8Array(GUEST_HANDLE.size);
  GUEST_HANDLE.handle.set(buffer, handle);
  psp.command('DECOMMISSION', buffer);
};

/** `sev_unbind_asid`: DEACTIVATE and DECOMMISSION, whatever they answer. The ASID needs a flush before it is used again. */
export const unbindAsid = (module: SevCall['module'], handle: number): void => {
  if (handle === 0) return;
  const buffer = new Uint8Array(GUEST_HANDLE.size);
  GUEST_HANDLE.handle.set(buffer, handle);
  module.psp.command('DEACTIVATE', buffer);
  decommission(module, handle);
};

/** KVM_SEV_LAUNCH_START (`sev_launch_start`). A second one replaces the first context, which is lost [D]. */
export const launchStart: SevHandler = (call) => {
  const kernelRef = 'sev_launch_start';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_launch_start);
  if (failed(params)) return params;
  const buffer = new Uint8Array(LAUNCH_START.size);
  LAUNCH_START.handle.set(buffer, params.handle);
  LAUNCH_START.policy.set(buffer, params.policy);
  if (params.dh_uaddr !== 0n) {
    const certificate = copyBlob(call, 'dh_uaddr', params.dh_uaddr, params.dh_len);
    if (failed(certificate)) return certificate;
    LAUNCH_START.dhCertPaddr.set(buffer, placeBlob(call, 0, certificate));
    LAUNCH_START.dhCertLength.set(buffer, certificate.length);
  }
  if (params.session_uaddr !== 0n) {
    const session = copyBlob(call, 'session_uaddr', params.session_uaddr, params.session_len);
    if (failed(session)) return session;
    LAUNCH_START.sessionPaddr.set(buffer, placeBlob(call, 1, session));
    LAUNCH_START.sessionLength.set(buffer, session.length);
  }
  const failure = issueOnFd(call, call.sevFd, 'LAUNCH_START', buffer, kernelRef);
  if (failure !== null) return failure;
  const handle = LAUNCH_START.handle.get(buffer);
  const inactive = bindAsid(call, handle);
  if (inactive !== null) return inactive;
  const uncopied = copyParamsOut(call, kvm_sev_launch_start, { ...params, handle });
  if (uncopied !== null) {
    unbindAsid(call.module, handle);
    return uncopied;
  }
  call.sev.policy = params.policy;
  call.sev.handle = handle;
  call.sev.fd = call.sevFd;
  return null;
};

/** KVM_SEV_LAUNCH_UPDATE_DATA (`sev_launch_update_data`): one command for each physically contiguous part. */
export const launchUpdateData: SevHandler = (call) => {
  const kernelRef = 'sev_launch_update_data';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_launch_update_data);
  if (failed(params)) return params;
  const { module, vm, sev } = call;
  const memory = pinMemory(module, vm, params.uaddr, BigInt(params.len), true);
  if (failed(memory)) return memory;
  // The firmware reads past the caches: what the host has written must be in memory.
  clflushPages(module, memory.pages);
  let failure: Failure | null = null;
  for (const { address, length } of contiguousChunks(memory)) {
    const buffer = new Uint8Array(LAUNCH_UPDATE.size);
    LAUNCH_UPDATE.handle.set(buffer, sev.handle);
    LAUNCH_UPDATE.paddr.set(buffer, address);
    LAUNCH_UPDATE.length.set(buffer, length);
    failure = issue(call, 'LAUNCH_UPDATE_DATA', buffer, kernelRef);
    if (failure !== null) break;
  }
  const token = module.kernel.sanitizer.contexts.tokenOf(vm);
  if (failure === null && token !== null)
    for (const { frame } of memory.pages) module.kernel.sanitizer.frames.encrypted(frame, token);
  unpinMemory(module, vm, memory.pages);
  return failure;
};

/** What LAUNCH_MEASURE and ATTESTATION have in common: a blob whose length userspace may ask for with `len` 0. */
const lengthAllowed = (uaddr: bigint, len: number, kernelRef: string): Failure | null =>
  len !== 0 && uaddr !== 0n && len > SEV_FW_BLOB_MAX_SIZE
    ? new Failure('EINVAL', 'BLOB_LENGTH', kernelRef, { field: 'len', given: String(len), allowed: `<= ${SEV_FW_BLOB_MAX_SIZE}` })
    : null;

/**
 * KVM_SEV_LAUNCH_MEASURE (`sev_launch_measure`). Length 0 asks for the length: EIO with the firmware's INVALID_LENGTH, and `len`.
 */
export const launchMeasure: SevHandler = (call) => {
  const kernelRef = 'sev_launch_measure';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_launch_measure);
  if (failed(params)) return params;
  const { sev, module, user } = call;
  const tooLong = lengthAllowed(params.uaddr, params.len, kernelRef);
  if (tooLong !== null) return tooLong;
  const buffer = new Uint8Array(LAUNCH_MEASURE.size);
  const blob = module.psp.buffers.blob(0);
  LAUNCH_MEASURE.handle.set(buffer, sev.handle);
  const wanted = params.len !== 0 && params.uaddr !== 0n;
  if (wanted) {
    LAUNCH_MEASURE.measurePaddr.set(buffer, blob);
    LAUNCH_MEASURE.measureLength.set(buffer, params.len);
  }
  const failure = issue(call, 'LAUNCH_MEASURE', buffer, kernelRef);
  if (params.len !== 0 && failure !== null) return failure;
  const len = LAUNCH_MEASURE.measureLength.get(buffer);
  const uncopied = wanted ? user.copyOut(params.uaddr, writtenBlob(call, 0, len, params.len)) : null;
  return copyParamsOut(call, kvm_sev_launch_measure, { ...params, len }) ?? uncopied ?? failure;
};

/** KVM_SEV_GET_ATTESTATION_REPORT (`sev_get_attestation_report`), with the same rule for length 0. */
export const getAttestationReport: SevHandler = (call) => {
  const kernelRef = 'sev_get_attestation_report';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_attestation_report);
  if (failed(params)) return params;
  const { sev, module, user } = call;
  const tooLong = lengthAllowed(params.uaddr, params.len, kernelRef);
  if (tooLong !== null) return tooLong;
  const buffer = new Uint8Array(ATTESTATION.size);
  const blob = module.psp.buffers.blob(0);
  ATTESTATION.handle.set(buffer, sev.handle);
  const wanted = params.len !== 0 && params.uaddr !== 0n;
  if (wanted) {
    ATTESTATION.paddr.set(buffer, blob);
    ATTESTATION.length.set(buffer, params.len);
    ATTESTATION.mnonce.set(buffer, params.mnonce);
  }
  const failure = issue(call, 'ATTESTATION', buffer, kernelRef);
  if (params.len !== 0 && failure !== null) return failure;
  const len = ATTESTATION.length.get(buffer);
  const uncopied = wanted ? user.copyOut(params.uaddr, writtenBlob(call, 0, len, params.len)) : null;
  return copyParamsOut(call, kvm_sev_attestation_report, { ...params, len }) ?? uncopied ?? failure;
};

/** KVM_SEV_LAUNCH_SECRET (`sev_launch_secret`): the guest's pages must be contiguous, for it is one command. */
export const launchSecret: SevHandler = (call) => {
  const kernelRef = 'sev_launch_secret';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_launch_secret);
  if (failed(params)) return params;
  const { module, vm, sev } = call;
  const memory = pinMemory(module, vm, params.guest_uaddr, BigInt(params.guest_len), true);
  if (failed(memory)) return memory;
  const inject = (): Failure | null => {
    clflushPages(module, memory.pages);
    const [chunk, ...more] = contiguousChunks(memory);
    if (chunk === undefined || more.length > 0)
      return new Failure('EINVAL', 'SECRET_PAGES_NOT_CONTIGUOUS', kernelRef, { field: 'guest_uaddr' });
    const trans = copyBlob(call, 'trans_uaddr', params.trans_uaddr, params.trans_len);
    if (failed(trans)) return trans;
    const header = copyBlob(call, 'hdr_uaddr', params.hdr_uaddr, params.hdr_len);
    if (failed(header)) return header;
    const buffer = new Uint8Array(PACKET.size);
    PACKET.handle.set(buffer, sev.handle);
    PACKET.hdrPaddr.set(buffer, placeBlob(call, 0, header));
    PACKET.hdrLength.set(buffer, header.length);
    PACKET.guestPaddr.set(buffer, chunk.address);
    PACKET.guestLength.set(buffer, chunk.length);
    PACKET.transPaddr.set(buffer, placeBlob(call, 1, trans));
    PACKET.transLength.set(buffer, trans.length);
    return issue(call, 'LAUNCH_SECRET', buffer, kernelRef);
  };
  const failure = inject();
  unpinMemory(module, vm, memory.pages);
  return failure;
};

/** A command whose buffer is the guest's handle alone: LAUNCH_FINISH and its like. */
export const handleCommand =
  (name: 'LAUNCH_FINISH' | 'SEND_FINISH' | 'SEND_CANCEL' | 'RECEIVE_FINISH', kernelRef: string) =>
  (call: SevCall): Failure | null => {
    const buffer = new Uint8Array(GUEST_HANDLE.size);
    GUEST_HANDLE.handle.set(buffer, call.sev.handle);
    return requireSevGuest(call, kernelRef) ?? issue(call, name, buffer, kernelRef);
  };

export const launchFinish: SevHandler = handleCommand('LAUNCH_FINISH', 'sev_launch_finish');

/** KVM_SEV_GUEST_STATUS (`sev_guest_status`): handle, policy and state as the firmware has them. */
export const guestStatus: SevHandler = (call) => {
  const kernelRef = 'sev_guest_status';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const buffer = new Uint8Array(GUEST_STATUS.size);
  GUEST_STATUS.handle.set(buffer, call.sev.handle);
  return (
    issue(call, 'GUEST_STATUS', buffer, kernelRef) ??
    copyParamsOut(call, kvm_sev_guest_status, {
      handle: GUEST_STATUS.handle.get(buffer),
      policy: GUEST_STATUS.policy.get(buffer),
      state: GUEST_STATUS.state.get(buffer),
    })
  );
};
