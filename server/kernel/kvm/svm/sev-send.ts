import { PACKET, SEND_START } from '../../../hardware/amd/command-buffers.js';
import { PACKET_HEADER } from '../../../hardware/amd/packet.js';
import { PAGE_SIZE, uva } from '../../../hardware/units.js';
import { SEV_FW_BLOB_MAX_SIZE } from '../../drivers/ccp/firmware-buffers.js';
import { KMALLOC_MAX_SIZE } from '../../drivers/ccp/user-blob.js';
import { Failure, failed } from '../../failure.js';
import { kvm_sev_send_start, kvm_sev_send_update_data } from '../../uapi/sev-structs.js';
import {
  copyBlob,
  copyParams,
  copyParamsOut,
  issue,
  placeBlob,
  requireSevGuest,
  type SevCall,
  type SevHandler,
  writtenBlob,
} from './sev-command.js';
import { handleCommand } from './sev-launch.js';
import { clflushPages, pinMemory, unpinMemory } from './sev-memory.js';

/** Bit of a physical address that says 'encrypted'; the firmware wants it on guest addresses. */
const C_BIT = 2 ** 51;

/** Of the firmware's blobs the one that a session is written to; those before it hold the target's certificates. */
const SESSION_SLOT = 3;

/** A guest page as SEND_ and RECEIVE_UPDATE_DATA name it. */
export const guestAddressOf = (address: number): number => address + C_BIT;

const invalid = (reason: string, kernelRef: string, field: string): Failure =>
  new Failure('EINVAL', reason, kernelRef, { field });

/** The range of a packet lies in one page. */
export const crossesPage = (uaddr: bigint, length: number): boolean =>
  length > PAGE_SIZE || Number(uaddr % BigInt(PAGE_SIZE)) + length > PAGE_SIZE;

/** KVM_SEV_SEND_START (`sev_send_start`). `session_len` 0 asks for the length: EIO, and the length. */
export const sendStart: SevHandler = (call) => {
  const kernelRef = 'sev_send_start';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_send_start);
  if (failed(params)) return params;
  const { module, sev, user } = call;
  const buffer = new Uint8Array(SEND_START.size);
  SEND_START.handle.set(buffer, sev.handle);
  if (params.session_len === 0) {
    const failure = issue(call, 'SEND_START', buffer, kernelRef);
    const sessionLength = SEND_START.sessionLength.get(buffer);
    return copyParamsOut(call, kvm_sev_send_start, { ...params, session_len: sessionLength }) ?? failure;
  }
  if (params.pdh_cert_uaddr === 0n || params.pdh_cert_len === 0)
    return invalid('PDH_CERTIFICATE_MISSING', kernelRef, 'pdh_cert_uaddr');
  if (params.session_uaddr === 0n || params.session_len > SEV_FW_BLOB_MAX_SIZE)
    return invalid('SESSION_BUFFER', kernelRef, 'session_uaddr');
  const pdh = copyBlob(call, 'pdh_cert_uaddr', params.pdh_cert_uaddr, params.pdh_cert_len);
  if (failed(pdh)) return pdh;
  const plat = copyBlob(call, 'plat_certs_uaddr', params.plat_certs_uaddr, params.plat_certs_len);
  if (failed(plat)) return plat;
  const amd = copyBlob(call, 'amd_certs_uaddr', params.amd_certs_uaddr, params.amd_certs_len);
  if (failed(amd)) return amd;
  SEND_START.pdhCertPaddr.set(buffer, placeBlob(call, 0, pdh));
  SEND_START.pdhCertLength.set(buffer, pdh.length);
  SEND_START.platCertsPaddr.set(buffer, placeBlob(call, 1, plat));
  SEND_START.platCertsLength.set(buffer, plat.length);
  SEND_START.amdCertsPaddr.set(buffer, placeBlob(call, 2, amd));
  SEND_START.amdCertsLength.set(buffer, amd.length);
  SEND_START.sessionPaddr.set(buffer, module.psp.buffers.blob(SESSION_SLOT));
  SEND_START.sessionLength.set(buffer, params.session_len);
  const failure = issue(call, 'SEND_START', buffer, kernelRef);
  const sessionLength = SEND_START.sessionLength.get(buffer);
  if (failure === null) {
    const uncopied = user.copyOut(params.session_uaddr, writtenBlob(call, SESSION_SLOT, sessionLength, params.session_len));
    if (uncopied !== null) return uncopied;
  }
  // Policy and length go back after a failure, too: whoever gave too short a buffer learns how long it has to be.
  const answer = { ...params, policy: SEND_START.policy.get(buffer), session_len: sessionLength };
  return copyParamsOut(call, kvm_sev_send_start, answer) ?? failure;
};

/** KVM_SEV_SEND_UPDATE_DATA (`sev_send_update_data`). A length of 0 asks for both lengths: EIO, and the lengths. */
export const sendUpdateData: SevHandler = (call) => {
  const kernelRef = 'sev_send_update_data';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_send_update_data);
  if (failed(params)) return params;
  const { module, vm, sev } = call;
  const buffer = new Uint8Array(PACKET.size);
  PACKET.handle.set(buffer, sev.handle);
  if (params.hdr_len === 0 || params.trans_len === 0) {
    const failure = issue(call, 'SEND_UPDATE_DATA', buffer, kernelRef);
    const lengths = { hdr_len: PACKET.hdrLength.get(buffer), trans_len: PACKET.transLength.get(buffer) };
    return copyParamsOut(call, kvm_sev_send_update_data, { ...params, ...lengths }) ?? failure;
  }
  if (params.trans_uaddr === 0n || params.guest_uaddr === 0n || params.hdr_uaddr === 0n)
    return invalid('PACKET_ADDRESS_MISSING', kernelRef, 'hdr_uaddr, guest_uaddr, trans_uaddr');
  if (crossesPage(params.guest_uaddr, params.guest_len)) return invalid('PACKET_CROSSES_PAGE', kernelRef, 'guest_len');
  const memory = pinMemory(module, vm, params.guest_uaddr, BigInt(params.guest_len), false);
  if (failed(memory)) return memory;
  clflushPages(module, memory.pages);
  const failure = tooLong(params) ?? sendPacket(call, buffer, params, (memory.pages[0]?.frame.hpa ?? 0) + memory.offset);
  const header = module.psp.buffers.read(module.psp.buffers.blob(0), PACKET_HEADER.size);
  if (failure === null) module.kernel.sanitizer.packets.sent(header, vm.memslots.gpaOf(uva(Number(params.guest_uaddr))));
  unpinMemory(module, vm, memory.pages);
  return failure;
};

interface PacketParams {
  readonly hdr_uaddr: bigint;
  readonly hdr_len: number;
  readonly guest_len: number;
  readonly trans_uaddr: bigint;
  readonly trans_len: number;
}

/** Buffers may be longer than a packet, as long as the kernel can make them. */
const tooLong = ({ hdr_len, trans_len }: PacketParams): Failure | null =>
  Math.max(hdr_len, trans_len) > KMALLOC_MAX_SIZE
    ? new Failure('ENOMEM', 'PACKET_LENGTH', 'sev_send_update_data', {
        field: 'hdr_len, trans_len',
        given: `${hdr_len}, ${trans_len}`,
        allowed: `<= ${KMALLOC_MAX_SIZE}`,
      })
    : null;

const sendPacket = (call: SevCall, buffer: Uint8Array, params: PacketParams, guest: number): Failure | null => {
  const { buffers } = call.module.psp;
  PACKET.hdrPaddr.set(buffer, buffers.blob(0));
  PACKET.hdrLength.set(buffer, Math.min(params.hdr_len, SEV_FW_BLOB_MAX_SIZE));
  PACKET.guestPaddr.set(buffer, guestAddressOf(guest));
  PACKET.guestLength.set(buffer, params.guest_len);
  PACKET.transPaddr.set(buffer, buffers.blob(1));
  PACKET.transLength.set(buffer, Math.min(params.trans_len, SEV_FW_BLOB_MAX_SIZE));
  return (
    issue(call, 'SEND_UPDATE_DATA', buffer, 'sev_send_update_data') ??
    call.user.copyOut(params.trans_uaddr, writtenBlob(call, 1, PACKET.transLength.get(buffer), params.trans_len)) ??
    call.user.copyOut(params.hdr_uaddr, writtenBlob(call, 0, PACKET.hdrLength.get(buffer), params.hdr_len))
  );
};

/** KVM_SEV_SEND_FINISH: the guest is sent. KVM marks nothing: the VM stays an active SEV guest with ASID and key. */
export const sendFinish: SevHandler = handleCommand('SEND_FINISH', 'sev_send_finish');
/** KVM_SEV_SEND_CANCEL: the guest runs on here. */
export const sendCancel: SevHandler = handleCommand('SEND_CANCEL', 'sev_send_cancel');
