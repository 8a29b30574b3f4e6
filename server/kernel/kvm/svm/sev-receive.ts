import { PACKET, RECEIVE_START } from '../../../hardware/amd/command-buffers.js';
import { uva } from '../../../hardware/units.js';
import { Failure, failed } from '../../failure.js';
import { kvm_sev_receive_start, kvm_sev_receive_update_data } from '../../uapi/sev-structs.js';
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
} from './sev-command.js';
import { bindAsid, handleCommand, unbindAsid } from './sev-launch.js';
import { clflushPages, pinMemory, unpinMemory } from './sev-memory.js';
import { crossesPage, guestAddressOf } from './sev-send.js';

/** KVM_SEV_RECEIVE_START (`sev_receive_start`): makes a guest context and activates it. The policy is not stored. */
export const receiveStart: SevHandler = (call) => {
  const kernelRef = 'sev_receive_start';
  const refused = requireSevGuest(call, kernelRef);
  if (refused !== null) return refused;
  const params = copyParams(call, kvm_sev_receive_start);
  if (failed(params)) return params;
  if (params.pdh_uaddr === 0n || params.pdh_len === 0 || params.session_uaddr === 0n || params.session_len === 0)
    return new Failure('EINVAL', 'SESSION_MISSING', kernelRef, { field: 'pdh_uaddr, session_uaddr' });
  const pdh = copyBlob(call, 'pdh_uaddr', params.pdh_uaddr, params.pdh_len);
  if (failed(pdh)) return pdh;
  const session = copyBlob(call, 'session_uaddr', params.session_uaddr, params.session_len);
  if (failed(session)) return session;
  const buffer = new Uint8Array(RECEIVE_START.size);
  RECEIVE_START.handle.set(buffer, params.handle);
  RECEIVE_START.policy.set(buffer, params.policy);
  RECEIVE_START.pdhCertPaddr.set(buffer, placeBlob(call, 0, pdh));
  RECEIVE_START.pdhCertLength.set(buffer, pdh.length);
  RECEIVE_START.sessionPaddr.set(buffer, placeBlob(call, 1, session));
  RECEIVE_START.sessionLength.set(buffer, session.length);
  const failure = issueOnFd(call, call.sevFd, 'RECEIVE_START', buffer, kernelRef);
  if (failure !== null) return failure;
  const handle = RECEIVE_START.handle.get(buffer);
  const inactive = bindAsid(call, handle);
  if (inactive !== null) return inactive;
  const uncopied = copyParamsOut(call, kvm_sev_receive_start, { ...params, handle });
  if (uncopied !== null) {
    unbindAsid(call.module, handle);
    return uncopied;
  }
  call.sev.handle = handle;
  call.sev.fd = call.sevFd;
  return null;
};

/** KVM_SEV_RECEIVE_UPDATE_DATA (`sev_receive_update_data`). A VM that is no SEV guest gets EINVAL here, not ENOTTY. */
export const receiveUpdateData: SevHandler = (call) => {
  const kernelRef = 'sev_receive_update_data';
  const { module, vm, sev } = call;
  if (!sev.active) return new Failure('EINVAL', 'NOT_A_SEV_GUEST', kernelRef, { object: `vm ${vm.id}` });
  const params = copyParams(call, kvm_sev_receive_update_data);
  if (failed(params)) return params;
  const addresses = [params.hdr_uaddr, params.guest_uaddr, params.trans_uaddr];
  const lengths = [params.hdr_len, params.guest_len, params.trans_len];
  if (addresses.includes(0n) || lengths.includes(0))
    return new Failure('EINVAL', 'PACKET_PART_MISSING', kernelRef, { field: 'hdr, guest, trans' });
  if (crossesPage(params.guest_uaddr, params.guest_len))
    return new Failure('EINVAL', 'PACKET_CROSSES_PAGE', kernelRef, { field: 'guest_len', given: String(params.guest_len) });
  const header = copyBlob(call, 'hdr_uaddr', params.hdr_uaddr, params.hdr_len);
  if (failed(header)) return header;
  const trans = copyBlob(call, 'trans_uaddr', params.trans_uaddr, params.trans_len);
  if (failed(trans)) return trans;
  const memory = pinMemory(module, vm, params.guest_uaddr, BigInt(params.guest_len), true);
  if (failed(memory)) return memory;
  // The firmware writes past the caches: no line of the host may be written back over it later.
  clflushPages(module, memory.pages);
  const failure = receivePacket(call, header, trans, {
    address: (memory.pages[0]?.frame.hpa ?? 0) + memory.offset,
    length: params.guest_len,
  });
  if (failure === null) module.kernel.sanitizer.packets.received(vm, header, vm.memslots.gpaOf(uva(Number(params.guest_uaddr))));
  const token = module.kernel.sanitizer.contexts.tokenOf(vm);
  if (failure === null && token !== null)
    for (const { frame } of memory.pages) module.kernel.sanitizer.frames.encrypted(frame, token);
  unpinMemory(module, vm, memory.pages);
  return failure;
};

const receivePacket = (
  call: SevCall,
  header: Uint8Array,
  trans: Uint8Array,
  guest: { readonly address: number; readonly length: number },
): Failure | null => {
  const buffer = new Uint8Array(PACKET.size);
  PACKET.handle.set(buffer, call.sev.handle);
  PACKET.hdrPaddr.set(buffer, placeBlob(call, 0, header));
  PACKET.hdrLength.set(buffer, header.length);
  PACKET.guestPaddr.set(buffer, guestAddressOf(guest.address));
  PACKET.guestLength.set(buffer, guest.length);
  PACKET.transPaddr.set(buffer, placeBlob(call, 1, trans));
  PACKET.transLength.set(buffer, trans.length);
  return issue(call, 'RECEIVE_UPDATE_DATA', buffer, 'sev_receive_update_data');
};

const finishReceiving = handleCommand('RECEIVE_FINISH', 'sev_receive_finish');

/** KVM_SEV_RECEIVE_FINISH: this alone makes the guest runnable here. */
export const receiveFinish: SevHandler = (call) => {
  const failure = finishReceiving(call);
  if (failure === null) call.module.kernel.sanitizer.packets.finished(call.vm);
  return failure;
};
