import type {
  SevUserDataGetId2Init,
  SevUserDataPdhCertExportInit,
  SevUserDataPekCertImportInit,
  SevUserDataPekCsrInit,
  SevUserDataSnpConfigInit,
  SevUserDataSnpVlekLoadInit,
} from '../gen/messages.js';
import { SevPlatform as SevPlatformService } from '../gen/services.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { bare, ioctl, out, ret } from './syscall.js';

/** Lengths in bytes of what the firmware gives: a certificate, the three of a chain, one chip's identity. */
const CERTIFICATE = 2084;
const CHAIN = 3 * CERTIFICATE;
const ID = 64;
/** `sizeof(struct sev_user_data_snp_vlek_load)`. */
const VLEK_LOAD = 16;

/**
 * The commands of /dev/sev, under their names in include/uapi/linux/psp-sev.h. What the firmware answered a command that failed
 * is the error's `fwError`.
 */
export const sevPlatformCalls = {
  /**
   * SEV_FACTORY_RESET: deletes the persistent identity of the platform. The next initialisation makes a self-owned one.
   * Errno: EPERM (not open for writing), EBUSY (there are guests), EIO (the firmware refused).
   */
  factoryReset: ioctl(SevPlatformService.factoryReset, bare, ret),
  /**
   * SEV_PLATFORM_STATUS: version, state, owner and number of guests.
   * Errno: EIO (the firmware refused).
   */
  platformStatus: ioctl(SevPlatformService.platformStatus, bare, out('status')),
  /**
   * SEV_PEK_GEN: makes a new owner CA, PEK and PDH; the platform is self-owned afterwards.
   * Errno: EPERM (not open for writing), EIO (the firmware refused).
   */
  pekGen: ioctl(SevPlatformService.pekGen, bare, ret),
  /**
   * SEV_PEK_CSR: the PEK certificate without signatures, for an owner to sign, in `address_bytes`; with length 0 its length.
   * Errno: EPERM (not open for writing), EFAULT (length above 16 KiB), EIO (the firmware refused).
   */
  pekCsr: ioctl(
    SevPlatformService.pekCsr,
    (fd, csr: SevUserDataPekCsrInit = { length: CERTIFICATE }) => ({ fd, csr }),
    out('csr'),
  ),
  /**
   * SEV_PDH_GEN: makes a new PDH. What was wrapped for the old one is worthless afterwards.
   * Errno: EPERM (not open for writing), EIO (the firmware refused).
   */
  pdhGen: ioctl(SevPlatformService.pdhGen, bare, ret),
  /**
   * SEV_PDH_CERT_EXPORT: the PDH certificate in `pdh_cert_address_bytes`, and PEK, OCA and CEK in `cert_chain_address_bytes`; with
   * a length of 0 both lengths.
   * Errno: EPERM (not open for writing, platform not initialised), EFAULT (a length above 16 KiB), EIO (the firmware refused).
   */
  pdhCertExport: ioctl(
    SevPlatformService.pdhCertExport,
    (fd, pdhCertExport: SevUserDataPdhCertExportInit = { pdh_cert_len: CERTIFICATE, cert_chain_len: CHAIN }) => ({
      fd,
      pdh_cert_export: pdhCertExport,
    }),
    out('pdh_cert_export'),
  ),
  /**
   * SEV_PEK_CERT_IMPORT: an owner takes the platform, with its CA and the PEK certificate that it has signed.
   * Errno: EPERM (not open for writing), EINVAL (a blob is missing or longer than 16 KiB), EIO (the firmware refused).
   */
  pekCertImport: ioctl(
    SevPlatformService.pekCertImport,
    (fd, pekCertImport: SevUserDataPekCertImportInit) => ({ fd, pek_cert_import: pekCertImport }),
    ret,
  ),
  /**
   * SEV_GET_ID2: the identity of the chip in `address_bytes`, 64 bytes for each socket; with length 0 its length.
   * Errno: ENOMEM (length above 4 MiB), EIO (the firmware refused).
   */
  getId2: ioctl(SevPlatformService.getId2, (fd, id: SevUserDataGetId2Init = { length: ID }) => ({ fd, id }), out('id')),
  /**
   * SNP_PLATFORM_STATUS: version, state and TCB versions of the SEV-SNP platform.
   * Errno: EIO (the firmware refused).
   */
  snpPlatformStatus: ioctl(SevPlatformService.snpPlatformStatus, bare, out('snp_status')),
  /**
   * SNP_COMMIT: the version that runs becomes the lowest that may run, and the TCB version that reports claim.
   * Errno: ENODEV (no SEV-SNP), EIO (the firmware refused).
   */
  snpCommit: ioctl(SevPlatformService.snpCommit, bare, ret),
  /**
   * SNP_SET_CONFIG: the TCB version that reports claim, and what they hide.
   * Errno: EPERM (not open for writing), ENODEV (no SEV-SNP), EIO (the firmware refused).
   */
  snpSetConfig: ioctl(
    SevPlatformService.snpSetConfig,
    (fd, snpConfig: SevUserDataSnpConfigInit) => ({ fd, snp_config: snpConfig }),
    ret,
  ),
  /**
   * SNP_VLEK_LOAD: loads the key of a cloud provider, with which reports are signed instead of the chip's.
   * Errno: EPERM (not open for writing), EINVAL (len, version or address), ENODEV (no SEV-SNP), EIO (the firmware refused).
   */
  snpVlekLoad: ioctl(
    SevPlatformService.snpVlekLoad,
    (fd, snpVlekLoad: SevUserDataSnpVlekLoadInit) => ({ fd, snp_vlek_load: { len: VLEK_LOAD, ...snpVlekLoad } }),
    ret,
  ),
} as const;

/**
 * /dev/sev, opened by `process.openSev`: the platform's commands, and the proof of access that KVM_SEV_LAUNCH_START and its
 * like want.
 *
 * @example
 * ```ts
 * await using sev = await process.openSev();
 * const { pdh_cert_address_bytes: pdh } = await sev.pdhCertExport();
 * ```
 */
export class SevPlatform extends withForms(class extends Handle {}, sevPlatformCalls) {}
