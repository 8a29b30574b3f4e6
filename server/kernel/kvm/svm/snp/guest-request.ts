import { SNP_GUEST_REQUEST } from '../../../../hardware/amd/snp/command-buffers.js';
import { MESSAGE_HEADER, MESSAGE_TYPE } from '../../../../hardware/amd/snp/guest-message.js';
import { gpa, PAGE_SIZE } from '../../../../hardware/units.js';
import { ERRNO } from '../../../errno.js';
import { Failure } from '../../../failure.js';
import type { Task } from '../../../sched/task.js';
import { KVM_EXIT } from '../../../uapi/constants.js';
import { kvm_run__snp_req_certs } from '../../../uapi/kvm-run.js';
import type { Turn } from '../../x86/vcpu-arch.js';
import { answerRegisters, GHCB_ERR, type GhcbHandler, type GhcbRequest, reject, succeed } from '../ghcb-request.js';
import { guestAddress, readGuest, writeGuest } from '../guest-memory.js';
import { issueOnFd } from '../sev-command.js';
import { isSevSnpGuest, toSevInfo } from '../sev-info.js';
import { contextAddress } from './context.js';

/** Messages between an SNP guest and the secure processor, which the host carries and cannot read. */

/** High half of exit_info_2: what the hypervisor has to say; the firmware's status is in the low half. GENERIC [NV]. */
const VMM_ERR = { INVALID_LEN: 1n << 32n, BUSY: 2n << 32n, GENERIC: 0xffff_ffffn << 32n } as const;

const PAGE = BigInt(PAGE_SIZE);
/** The entry that ends a table of certificates. */
const CERT_TABLE_END = new Uint8Array(24);

const noGuestMemory = (kernelRef: string, address: bigint): Failure =>
  new Failure('EIO', 'GUEST_MEMORY_MISSING', kernelRef, { gpa: `0x${address.toString(16)}` });

/** Two different pages, of an SNP guest (`sev_es_validate_vmgexit`). */
const isWellFormed = ({ vcpu, info1, info2 }: GhcbRequest): boolean =>
  isSevSnpGuest(vcpu.vm) && info1 % PAGE === 0n && info2 % PAGE === 0n && info1 !== info2;

/**
 * `snp_handle_guest_req`: exit_info_1 has the request's page, exit_info_2 the response's. What the firmware says goes on to the
 * guest; EBADF: `/dev/sev` is not where the launch has left it, EIO: a page is missing.
 */
const handleGuestRequest = (request: GhcbRequest, current: Task): Turn => {
  const kernelRef = 'snp_handle_guest_req';
  const { module, vcpu, info1, info2 } = request;
  const sev = toSevInfo(vcpu.vm);
  const buffers = sev.guestRequest;
  if (!isSevSnpGuest(vcpu.vm) || buffers === null || sev.snpContext === null)
    return new Failure('EINVAL', 'NOT_AN_SNP_GUEST', kernelRef, { object: `vm ${vcpu.vm.id}` });
  const [from, to] = [guestAddress(info1), guestAddress(info2)];
  const message = from === null ? null : readGuest(vcpu, from, PAGE_SIZE);
  if (message === null) return noGuestMemory(kernelRef, info1);
  buffers.request.frame.viewForWrite(null).set(message);
  const buffer = new Uint8Array(SNP_GUEST_REQUEST.size);
  SNP_GUEST_REQUEST.gctxPaddr.set(buffer, contextAddress(sev));
  SNP_GUEST_REQUEST.requestPaddr.set(buffer, buffers.request.frame.hpa);
  SNP_GUEST_REQUEST.responsePaddr.set(buffer, buffers.response.frame.hpa);
  const refused = issueOnFd({ module, current }, sev.fd, 'SNP_GUEST_REQUEST', buffer, kernelRef);
  const fwError = refused?.fwError ?? 0;
  if (refused !== null && fwError === 0) return refused;
  if (to === null || !writeGuest(vcpu, to, buffers.response.frame.view(null))) return noGuestMemory(kernelRef, info2);
  return succeed(request, BigInt(fwError));
};

/** SVM_VMGEXIT_GUEST_REQUEST. */
export const guestRequest: GhcbHandler = (request) =>
  isWellFormed(request) ? handleGuestRequest(request, request.current) : reject(request, GHCB_ERR.MISSING_INPUT);

/** KVM_EXIT_SNP_REQ_CERTS: userspace puts certificates into the guest's pages before the report is made. */
const askForCertificates = (request: GhcbRequest, address: bigint, npages: bigint): Turn => {
  const { arch } = request.vcpu;
  arch.run.exit(KVM_EXIT.SNP_REQ_CERTS, kvm_run__snp_req_certs, { gpa: address, npages, ret: 0n });
  arch.completion = {
    kind: 'vendor',
    wantsData: true,
    *run(current) {
      return completeCertificates(request, current);
    },
  };
  return 'to-user';
};

/** `snp_complete_req_certs`. EINVAL: an answer that is none. */
const completeCertificates = (request: GhcbRequest, current: Task): Turn => {
  const { ret, npages } = request.vcpu.arch.run.read(kvm_run__snp_req_certs);
  switch (Number(ret)) {
    case 0:
      return handleGuestRequest(request, current);
    case ERRNO.ENOSPC:
      answerRegisters(request, { rbx: npages });
      return succeed(request, VMM_ERR.INVALID_LEN);
    case ERRNO.EAGAIN:
      return succeed(request, VMM_ERR.BUSY);
    case ERRNO.EIO:
      return succeed(request, VMM_ERR.GENERIC);
    default:
      return new Failure('EINVAL', 'SNP_REQ_CERTS_ANSWER', 'snp_complete_req_certs', { field: 'ret', given: String(ret) });
  }
};

/**
 * SVM_VMGEXIT_EXT_GUEST_REQUEST (`snp_handle_ext_guest_req`): RAX and RBX name pages for the certificates that go with a report;
 * unless userspace provides them the guest gets an empty table.
 */
export const extendedGuestRequest: GhcbHandler = (request) => {
  const kernelRef = 'snp_handle_ext_guest_req';
  const { vcpu, info1, rax, rbx } = request;
  if (!isWellFormed(request)) return reject(request, GHCB_ERR.MISSING_INPUT);
  const header = guestAddress(info1);
  const type = header === null ? null : readGuest(vcpu, gpa(header + MESSAGE_HEADER.type.offset), 1);
  if (type === null) return noGuestMemory(kernelRef, info1);
  if (type[0] !== MESSAGE_TYPE.REPORT_REQ) return handleGuestRequest(request, request.current);
  if (rax === null || rbx === null || rax % PAGE !== 0n) return reject(request, GHCB_ERR.INVALID_INPUT);
  if (toSevInfo(vcpu.vm).snpCertsEnabled) return askForCertificates(request, rax, rbx);
  const table = guestAddress(rax);
  if (rbx !== 0n && (table === null || !writeGuest(vcpu, table, CERT_TABLE_END))) return noGuestMemory(kernelRef, rax);
  return handleGuestRequest(request, request.current);
};
