import type {
  KvmSevAttestationReportInit,
  KvmSevDbgInit,
  KvmSevInitInit,
  KvmSevLaunchMeasureInit,
  KvmSevLaunchSecretInit,
  KvmSevLaunchStartInit,
  KvmSevLaunchUpdateDataInit,
  KvmSevReceiveStartInit,
  KvmSevReceiveUpdateDataInit,
  KvmSevSendStartInit,
  KvmSevSendUpdateDataInit,
  KvmSevSnpLaunchFinishInit,
  KvmSevSnpLaunchStartInit,
  KvmSevSnpLaunchUpdateInit,
} from '../gen/messages.js';
import { KvmVm } from '../gen/services.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { bare, ioctl, out, ret } from './syscall.js';

/**
 * The SEV commands of KVM_MEMORY_ENCRYPT_OP, under their names in Documentation/virt/kvm/x86/amd-memory-encryption.rst. What
 * the firmware answered a command that failed is the error's `fwError`. `EIO (gate)` as with every ioctl of a VM.
 */
export const sevCalls = {
  /**
   * KVM_SEV_INIT: makes a VM of type DEFAULT a SEV guest and gives it an ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; no ASIDs), EINVAL (type, vCPUs, initialised already), EBUSY (no
   * ASID is free), EIO with `error` (the firmware refused).
   */
  init: ioctl(KvmVm.sevInit, bare, ret),
  /**
   * KVM_SEV_ES_INIT: makes a VM of type DEFAULT a SEV-ES guest and gives it an ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; no SEV-ES), EINVAL (type, vCPUs, initialised already), EBUSY (no
   * ASID is free), EIO with `error` (the firmware refused).
   */
  esInit: ioctl(KvmVm.sevEsInit, bare, ret),
  /**
   * KVM_SEV_INIT2: initialises a VM of type SEV, SEV_ES or SNP and gives it an ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; no ASIDs), EINVAL (type, vCPUs, flags, features, GHCB version,
   * initialised already), EBUSY (no ASID is free), EIO with `error` (the firmware refused).
   */
  init2: ioctl(KvmVm.sevInit2, (fd, init: KvmSevInitInit) => ({ fd, init }), ret),
  /**
   * KVM_SEV_LAUNCH_START: opens the guest's firmware context and activates its ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length of a blob), EBADF (sev_fd),
   * EFAULT, ENOMEM, EIO with `error` (the firmware refused).
   */
  launchStart: ioctl(
    KvmVm.sevLaunchStart,
    (fd, launchStart: KvmSevLaunchStartInit, sevFd: number) => ({ fd, launch_start: launchStart, sev_fd: sevFd }),
    out('launch_start'),
  ),
  /**
   * KVM_SEV_LAUNCH_UPDATE_DATA: encrypts memory in place and adds it to the launch digest.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length), ENOMEM, EFAULT, EBADF, EIO with
   * `error` (the firmware refused).
   */
  launchUpdateData: ioctl(
    KvmVm.sevLaunchUpdateData,
    (fd, launchUpdateData: KvmSevLaunchUpdateDataInit) => ({ fd, launch_update_data: launchUpdateData }),
    ret,
  ),
  /**
   * KVM_SEV_LAUNCH_UPDATE_VMSA: encrypts and measures every vCPU's save area (SEV-ES).
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EBUSY (a vCPU is being created), EINVAL
   * (debugging; encrypted already), EINTR, EBADF, EIO with `error` (the firmware refused).
   */
  launchUpdateVmsa: ioctl(KvmVm.sevLaunchUpdateVmsa, bare, ret),
  /**
   * KVM_SEV_LAUNCH_SECRET: puts the guest owner's secret into guest memory.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (lengths; pages not contiguous), ENOMEM,
   * EFAULT, EBADF, EIO with `error` (the firmware refused).
   */
  launchSecret: ioctl(
    KvmVm.sevLaunchSecret,
    (fd, launchSecret: KvmSevLaunchSecretInit) => ({ fd, launch_secret: launchSecret }),
    ret,
  ),
  /**
   * KVM_SEV_LAUNCH_MEASURE: the measurement of what was launched; with len 0 its length.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length), ENOMEM, EFAULT, EBADF, EIO with
   * `error` (the firmware refused).
   */
  launchMeasure: ioctl(
    KvmVm.sevLaunchMeasure,
    (fd, launchMeasure: KvmSevLaunchMeasureInit) => ({ fd, launch_measure: launchMeasure }),
    out('launch_measure'),
  ),
  /**
   * KVM_SEV_LAUNCH_FINISH: ends the launch.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EBADF, EIO with `error` (the firmware refused).
   */
  launchFinish: ioctl(KvmVm.sevLaunchFinish, bare, ret),
  /**
   * KVM_SEV_SEND_START: begins to send the guest to another platform; with session_len 0 the session's length.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (lengths), ENOMEM, EFAULT, EBADF, EIO
   * with `error` (the firmware refused).
   */
  sendStart: ioctl(
    KvmVm.sevSendStart,
    (fd, sendStart: KvmSevSendStartInit) => ({ fd, send_start: sendStart }),
    out('send_start'),
  ),
  /**
   * KVM_SEV_SEND_UPDATE_DATA: one page, encrypted for the destination; with hdr_len or trans_len 0 the lengths.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (lengths; a range over a page border),
   * ENOMEM, EFAULT, EBADF, EIO with `error` (the firmware refused).
   */
  sendUpdateData: ioctl(
    KvmVm.sevSendUpdateData,
    (fd, sendUpdateData: KvmSevSendUpdateDataInit) => ({ fd, send_update_data: sendUpdateData }),
    out('send_update_data'),
  ),
  /**
   * KVM_SEV_SEND_UPDATE_VMSA: Linux has the number and no code for it.
   * Errno: EIO (gate), ENOTTY (no SEV host; never here), EINVAL (always).
   */
  sendUpdateVmsa: ioctl(KvmVm.sevSendUpdateVmsa, bare, ret),
  /**
   * KVM_SEV_SEND_FINISH: ends sending.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EBADF, EIO with `error` (the firmware refused).
   */
  sendFinish: ioctl(KvmVm.sevSendFinish, bare, ret),
  /**
   * KVM_SEV_SEND_CANCEL: gives up sending; the guest may run on here.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EBADF, EIO with `error` (the firmware refused).
   */
  sendCancel: ioctl(KvmVm.sevSendCancel, bare, ret),
  /**
   * KVM_SEV_RECEIVE_START: opens a firmware context for a guest that arrives, and activates its ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (a blob is missing), EBADF (sev_fd),
   * EFAULT, ENOMEM, EIO with `error` (the firmware refused).
   */
  receiveStart: ioctl(
    KvmVm.sevReceiveStart,
    (fd, receiveStart: KvmSevReceiveStartInit, sevFd: number) => ({ fd, receive_start: receiveStart, sev_fd: sevFd }),
    out('receive_start'),
  ),
  /**
   * KVM_SEV_RECEIVE_UPDATE_DATA: one page that arrived, decrypted and encrypted with the guest's key.
   * Errno: EIO (gate), ENOTTY (no SEV host; not here), EINVAL (no SEV guest; lengths; a range over a page
   * border), ENOMEM, EFAULT, EBADF, EIO with `error` (the firmware refused).
   */
  receiveUpdateData: ioctl(
    KvmVm.sevReceiveUpdateData,
    (fd, receiveUpdateData: KvmSevReceiveUpdateDataInit) => ({ fd, receive_update_data: receiveUpdateData }),
    ret,
  ),
  /**
   * KVM_SEV_RECEIVE_UPDATE_VMSA: Linux has the number and no code for it.
   * Errno: EIO (gate), ENOTTY (no SEV host; never here), EINVAL (always).
   */
  receiveUpdateVmsa: ioctl(KvmVm.sevReceiveUpdateVmsa, bare, ret),
  /**
   * KVM_SEV_RECEIVE_FINISH: ends receiving; the guest may run.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EBADF, EIO with `error` (the firmware refused).
   */
  receiveFinish: ioctl(KvmVm.sevReceiveFinish, bare, ret),
  /**
   * KVM_SEV_GUEST_STATUS: handle, policy and state of the guest, as the firmware has them.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EFAULT, EBADF, EIO with `error` (the firmware refused).
   */
  guestStatus: ioctl(KvmVm.sevGuestStatus, bare, out('guest_status')),
  /**
   * KVM_SEV_DBG_DECRYPT: decrypts guest memory at src into dst, if the policy allows it.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length, wrap), EFAULT, ENOMEM, EBADF,
   * EIO with `error` (the firmware refused).
   */
  dbgDecrypt: ioctl(KvmVm.sevDbgDecrypt, (fd, dbg: KvmSevDbgInit) => ({ fd, dbg }), ret),
  /**
   * KVM_SEV_DBG_ENCRYPT: encrypts src into guest memory at dst, if the policy allows it.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length, wrap), EFAULT, ENOMEM, EBADF,
   * EIO with `error` (the firmware refused).
   */
  dbgEncrypt: ioctl(KvmVm.sevDbgEncrypt, (fd, dbg: KvmSevDbgInit) => ({ fd, dbg }), ret),
  /**
   * KVM_SEV_CERT_EXPORT: Linux has the number and no code for it.
   * Errno: EIO (gate), ENOTTY (no SEV host; never here), EINVAL (always).
   */
  certExport: ioctl(KvmVm.sevCertExport, bare, ret),
  /**
   * KVM_SEV_GET_ATTESTATION_REPORT: a signed report on the guest; with len 0 its length.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (length), ENOMEM, EFAULT, EBADF, EIO with
   * `error` (the firmware refused).
   */
  getAttestationReport: ioctl(
    KvmVm.sevGetAttestationReport,
    (fd, attestationReport: KvmSevAttestationReportInit) => ({ fd, attestation_report: attestationReport }),
    out('attestation_report'),
  ),
  /**
   * KVM_SEV_SNP_LAUNCH_START: opens the guest's firmware context and binds its ASID.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (there is a context; flags; policy),
   * EBADF (sev_fd), EFAULT, EIO with `error` (the firmware refused).
   */
  snpLaunchStart: ioctl(
    KvmVm.sevSnpLaunchStart,
    (fd, snpLaunchStart: KvmSevSnpLaunchStartInit, sevFd: number) => ({ fd, snp_launch_start: snpLaunchStart, sev_fd: sevFd }),
    ret,
  ),
  /**
   * KVM_SEV_SNP_LAUNCH_UPDATE: encrypts and measures pages; gfn_start, uaddr and len come back advanced.
   * Errno: EIO (gate), ENOTTY (no SEV host; not here), EINVAL (no SNP guest or context; length, type, flags,
   * alignment; no guest_memfd), EFAULT, EIO (the first page is shared, or the guest's already; no such sev_fd), with
   * `error` where the firmware refused.
   */
  snpLaunchUpdate: ioctl(
    KvmVm.sevSnpLaunchUpdate,
    (fd, snpLaunchUpdate: KvmSevSnpLaunchUpdateInit, sevFd: number) => ({
      fd,
      snp_launch_update: snpLaunchUpdate,
      sev_fd: sevFd,
    }),
    out('snp_launch_update'),
  ),
  /**
   * KVM_SEV_SNP_LAUNCH_FINISH: measures every vCPU's save area and ends the launch.
   * Errno: EIO (gate), ENOTTY (no SEV host; not such a guest), EINVAL (no context; flags), EBUSY (a vCPU is
   * being created), EFAULT, EINTR, EIO with `error` (the firmware refused).
   */
  snpLaunchFinish: ioctl(
    KvmVm.sevSnpLaunchFinish,
    (fd, snpLaunchFinish: KvmSevSnpLaunchFinishInit, sevFd: number) => ({
      fd,
      snp_launch_finish: snpLaunchFinish,
      sev_fd: sevFd,
    }),
    ret,
  ),
  /**
   * KVM_SEV_SNP_ENABLE_REQ_CERTS: extended guest requests exit to userspace for certificates.
   * Errno: EIO (gate), ENOTTY (no SEV host; not here), EINVAL (no SNP guest; there are vCPUs).
   */
  snpEnableReqCerts: ioctl(KvmVm.sevSnpEnableReqCerts, bare, ret),
} as const;

/**
 * A VM as SEV guest: `vm.sev`.
 *
 * @example
 * ```ts
 * await using sev = await process.openSev();
 * await vm.sev.init();
 * await vm.sev.launchStart({ policy: 0 }, sev.fd);
 * await vm.sev.launchUpdateData({ uaddr: ram, len: 4096 });
 * const { uaddr_bytes: measurement } = await vm.sev.launchMeasure({ len: 48 });
 * await vm.sev.launchFinish();
 * ```
 */
export class Sev extends withForms(class extends Handle {}, sevCalls) {}
