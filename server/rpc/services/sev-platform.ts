import type { SevPlatform } from '../../../gen/services.js';
import {
  sev_user_data_get_id2,
  sev_user_data_pdh_cert_export,
  sev_user_data_pek_cert_import,
  sev_user_data_pek_csr,
  sev_user_data_snp_config,
  sev_user_data_snp_status,
  sev_user_data_snp_vlek_load,
  sev_user_data_status,
} from '../../kernel/uapi/sev-structs.js';
import type { IoctlMethod } from '../ioctl/method.js';
import { sevPlatformCommand } from '../ioctl/sev-platform-command.js';

/** The commands of /dev/sev. */
export const sevPlatform = {
  factoryReset: sevPlatformCommand('FACTORY_RESET'),
  platformStatus: sevPlatformCommand('PLATFORM_STATUS', { struct: sev_user_data_status, field: 'status', answers: true }, false),
  pekGen: sevPlatformCommand('PEK_GEN'),
  pekCsr: sevPlatformCommand('PEK_CSR', {
    struct: sev_user_data_pek_csr,
    field: 'csr',
    answers: true,
    pointers: [{ member: 'address', length: 'length' }],
  }),
  pdhGen: sevPlatformCommand('PDH_GEN'),
  pdhCertExport: sevPlatformCommand('PDH_CERT_EXPORT', {
    struct: sev_user_data_pdh_cert_export,
    field: 'pdh_cert_export',
    answers: true,
    pointers: [
      { member: 'pdh_cert_address', length: 'pdh_cert_len' },
      { member: 'cert_chain_address', length: 'cert_chain_len' },
    ],
  }),
  pekCertImport: sevPlatformCommand('PEK_CERT_IMPORT', {
    struct: sev_user_data_pek_cert_import,
    field: 'pek_cert_import',
    pointers: [
      { member: 'pek_cert_address', length: 'pek_cert_len' },
      { member: 'oca_cert_address', length: 'oca_cert_len' },
    ],
  }),
  getId2: sevPlatformCommand('GET_ID2', {
    struct: sev_user_data_get_id2,
    field: 'id',
    answers: true,
    pointers: [{ member: 'address', length: 'length' }],
  }),
  snpPlatformStatus: sevPlatformCommand(
    'SNP_PLATFORM_STATUS',
    { struct: sev_user_data_snp_status, field: 'snp_status', answers: true },
    false,
  ),
  snpCommit: sevPlatformCommand('SNP_COMMIT'),
  snpSetConfig: sevPlatformCommand('SNP_SET_CONFIG', { struct: sev_user_data_snp_config, field: 'snp_config' }),
  snpVlekLoad: sevPlatformCommand('SNP_VLEK_LOAD', {
    struct: sev_user_data_snp_vlek_load,
    field: 'snp_vlek_load',
    pointers: [{ member: 'vlek_wrapped_address' }],
  }),
} satisfies Record<keyof typeof SevPlatform, IoctlMethod>;
