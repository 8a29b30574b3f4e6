import { GET_ID, PDH_CERT_EXPORT, PEK_CERT_IMPORT, PEK_CSR, PLATFORM_STATUS } from '../../../hardware/amd/command-buffers.js';
import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { PLATFORM_STATE_NUMBER } from '../../../hardware/amd/platform-state.js';
import { SNP_COMMIT, SNP_PLATFORM_STATUS, SNP_VLEK_LOAD } from '../../../hardware/amd/snp/command-buffers.js';
import { STATUS } from '../../../hardware/amd/status.js';
import { Failure, failed, type Result } from '../../failure.js';
import { File, type FileOperations, type FileStat, OPEN } from '../../fs/file.js';
import type { IoctlArg, UserCopy } from '../../fs/ioctl-arg.js';
import type { Kernel } from '../../kernel.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { IOCTL } from '../../uapi/ioctls.js';
import {
  SEV_USER_CMD,
  SNP_WRAPPED_VLEK_HASHSTICK_SIZE,
  sev_issue_cmd,
  sev_user_data_get_id,
  sev_user_data_get_id2,
  sev_user_data_pdh_cert_export,
  sev_user_data_pek_cert_import,
  sev_user_data_pek_csr,
  sev_user_data_snp_config,
  sev_user_data_snp_status,
  sev_user_data_snp_vlek_load,
  sev_user_data_status,
} from '../../uapi/sev-structs.js';
import { SEV_FW_BLOB_MAX_SIZE } from './firmware-buffers.js';
import type { Psp } from './psp.js';
import { KMALLOC_MAX_SIZE, pspCopyUserBlob } from './user-blob.js';

/** What a command of `/dev/sev` works on. */
interface Call {
  readonly psp: Psp;
  readonly user: UserCopy;
  /** User address of the command's own structure. */
  readonly data: bigint;
  readonly writable: boolean;
  /** What the firmware said last; until it has been called, what userspace has put there. */
  error: number;
}

type Handler = (call: Call) => Failure | null;

/** `__sev_do_cmd_locked` with the caller's `error`. */
const run = (call: Call, name: CommandName, buffer: Uint8Array | null, kernelRef: string): Failure | null => {
  const refused = call.psp.run(name, buffer, kernelRef);
  call.error = refused?.fwError ?? STATUS.SUCCESS;
  return refused;
};

const invalid = (reason: string, kernelRef: string, field: string, given: number): Failure =>
  new Failure('EINVAL', reason, kernelRef, { field, given: String(given) });

const readOnly = (kernelRef: string): Failure =>
  new Failure('EPERM', 'SEV_FD_READ_ONLY', kernelRef, { expected: 'open for writing' });

const factoryReset: Handler = (call) => {
  const kernelRef = 'sev_ioctl_do_reset';
  const { psp, writable } = call;
  if (!writable) return readOnly(kernelRef);
  const status = new Uint8Array(PLATFORM_STATUS.size);
  const unknown = run(call, 'PLATFORM_STATUS', status, kernelRef);
  if (unknown !== null) return unknown;
  const state = PLATFORM_STATUS.state.get(status);
  if (state === PLATFORM_STATE_NUMBER.working) return new Failure('EBUSY', 'PLATFORM_WORKING', kernelRef, { state: 'working' });
  const running = state === PLATFORM_STATE_NUMBER.init ? psp.platformShutdown() : null;
  return running ?? run(call, 'PLATFORM_RESET', null, kernelRef);
};

const platformStatus: Handler = (call) => {
  const buffer = new Uint8Array(PLATFORM_STATUS.size);
  return (
    run(call, 'PLATFORM_STATUS', buffer, 'sev_ioctl_do_platform_status') ??
    call.user.copyOut(call.data, buffer.subarray(0, sev_user_data_status.size))
  );
};

/** PEK_GEN and PDH_GEN. */
const generate =
  (command: 'PEK_GEN' | 'PDH_GEN'): Handler =>
  (call) => {
    const kernelRef = 'sev_ioctl_do_pek_pdh_gen';
    return call.writable ? call.psp.withPlatform(() => run(call, command, null, kernelRef)) : readOnly(kernelRef);
  };

const pekCsr: Handler = (call) => {
  const { psp, user, data, writable } = call;
  const kernelRef = 'sev_ioctl_do_pek_csr';
  if (!writable) return readOnly(kernelRef);
  const bytes = user.copyIn(data, sev_user_data_pek_csr.size);
  if (failed(bytes)) return bytes;
  const given = sev_user_data_pek_csr.decode(bytes);
  const query = given.address === 0n || given.length === 0;
  if (!query && given.length > SEV_FW_BLOB_MAX_SIZE)
    return new Failure('EFAULT', 'CSR_LENGTH', kernelRef, { field: 'length', given: String(given.length) });
  return psp.withPlatform(() => {
    const buffer = new Uint8Array(PEK_CSR.size);
    const blob = psp.buffers.blob(0);
    if (!query) {
      PEK_CSR.csrPaddr.set(buffer, blob);
      PEK_CSR.csrLength.set(buffer, given.length);
    }
    const refused = run(call, 'PEK_CSR', buffer, kernelRef);
    const length = PEK_CSR.csrLength.get(buffer);
    const copied = user.copyOut(data, sev_user_data_pek_csr.encode({ address: given.address, length }));
    if (copied !== null) return copied;
    return refused ?? user.copyOut(given.address, psp.buffers.read(blob, length));
  });
};

const pdhCertExport: Handler = (call) => {
  const { psp, user, data, writable } = call;
  const kernelRef = 'sev_ioctl_do_pdh_export';
  const bytes = user.copyIn(data, sev_user_data_pdh_cert_export.size);
  if (failed(bytes)) return bytes;
  const given = sev_user_data_pdh_cert_export.decode(bytes);
  const lengths = [given.pdh_cert_len, given.cert_chain_len];
  const query = given.pdh_cert_address === 0n || given.pdh_cert_len === 0 || given.cert_chain_address === 0n;
  if (!query && lengths.some((length) => length > SEV_FW_BLOB_MAX_SIZE))
    return new Failure('EFAULT', 'CERTIFICATE_LENGTH', kernelRef, { given: lengths.join(',') });
  if (!psp.initialised && !writable) return readOnly(kernelRef);
  return psp.withPlatform(() => {
    const buffer = new Uint8Array(PDH_CERT_EXPORT.size);
    if (!query) {
      PDH_CERT_EXPORT.pdhCertPaddr.set(buffer, psp.buffers.blob(0));
      PDH_CERT_EXPORT.pdhCertLength.set(buffer, given.pdh_cert_len);
      PDH_CERT_EXPORT.certsPaddr.set(buffer, psp.buffers.blob(1));
      PDH_CERT_EXPORT.certsLength.set(buffer, given.cert_chain_len);
    }
    const refused = run(call, 'PDH_CERT_EXPORT', buffer, kernelRef);
    const pdhLength = PDH_CERT_EXPORT.pdhCertLength.get(buffer);
    const chainLength = PDH_CERT_EXPORT.certsLength.get(buffer);
    const lengthsOut = { ...given, pdh_cert_len: pdhLength, cert_chain_len: chainLength };
    return (
      user.copyOut(data, sev_user_data_pdh_cert_export.encode(lengthsOut)) ??
      refused ??
      user.copyOut(given.pdh_cert_address, psp.buffers.read(psp.buffers.blob(0), pdhLength)) ??
      user.copyOut(given.cert_chain_address, psp.buffers.read(psp.buffers.blob(1), chainLength))
    );
  });
};

const pekCertImport: Handler = (call) => {
  const { psp, user, data, writable } = call;
  const kernelRef = 'sev_ioctl_do_pek_import';
  if (!writable) return readOnly(kernelRef);
  const bytes = user.copyIn(data, sev_user_data_pek_cert_import.size);
  if (failed(bytes)) return bytes;
  const given = sev_user_data_pek_cert_import.decode(bytes);
  const pek = pspCopyUserBlob(user, 'pek_cert_address', given.pek_cert_address, given.pek_cert_len);
  if (failed(pek)) return pek;
  const oca = pspCopyUserBlob(user, 'oca_cert_address', given.oca_cert_address, given.oca_cert_len);
  if (failed(oca)) return oca;
  return psp.withPlatform(() => {
    psp.buffers.write(psp.buffers.blob(0), pek);
    psp.buffers.write(psp.buffers.blob(1), oca);
    const buffer = new Uint8Array(PEK_CERT_IMPORT.size);
    PEK_CERT_IMPORT.pekCertPaddr.set(buffer, psp.buffers.blob(0));
    PEK_CERT_IMPORT.pekCertLength.set(buffer, pek.length);
    PEK_CERT_IMPORT.ocaCertPaddr.set(buffer, psp.buffers.blob(1));
    PEK_CERT_IMPORT.ocaCertLength.set(buffer, oca.length);
    return run(call, 'PEK_CERT_IMPORT', buffer, kernelRef);
  });
};

/** Issues GET_ID for `length` bytes of identity. */
const readId = (call: Call, length: number, kernelRef: string): { refused: Failure | null; length: number; id: Uint8Array } => {
  const { buffers } = call.psp;
  const buffer = new Uint8Array(GET_ID.size);
  if (length > 0) {
    GET_ID.idPaddr.set(buffer, buffers.blob(0));
    GET_ID.idLength.set(buffer, length);
  }
  const refused = run(call, 'GET_ID', buffer, kernelRef);
  const needed = GET_ID.idLength.get(buffer);
  return { refused, length: needed, id: refused === null ? buffers.read(buffers.blob(0), needed) : new Uint8Array(0) };
};

/** Deprecated: room for the identities of two sockets, of which as many are written as there are. */
const getId: Handler = (call) => {
  const { refused, id } = readId(call, sev_user_data_get_id.size, 'sev_ioctl_do_get_id');
  return refused ?? call.user.copyOut(call.data, id);
};

/** How long an identity may be is not for software to assume. */
const getId2: Handler = (call) => {
  const { user, data } = call;
  const kernelRef = 'sev_ioctl_do_get_id2';
  const bytes = user.copyIn(data, sev_user_data_get_id2.size);
  if (failed(bytes)) return bytes;
  const given = sev_user_data_get_id2.decode(bytes);
  if (given.address !== 0n && given.length > KMALLOC_MAX_SIZE)
    return new Failure('ENOMEM', 'ID_LENGTH', kernelRef, { field: 'length', given: String(given.length) });
  const room = Math.min(given.length, SEV_FW_BLOB_MAX_SIZE);
  const { refused, length, id } = readId(call, given.address === 0n ? 0 : room, kernelRef);
  return (
    user.copyOut(data, sev_user_data_get_id2.encode({ address: given.address, length })) ??
    refused ??
    user.copyOut(given.address, id)
  );
};

const noSnp = (kernelRef: string): Failure =>
  new Failure('ENODEV', 'NO_SNP_HOST', kernelRef, { expected: 'a host with SEV-SNP' }, STATUS.INVALID_PLATFORM_STATE);

const noStructure = (kernelRef: string): Failure =>
  new Failure('EINVAL', 'NO_STRUCTURE', kernelRef, { field: 'data', given: '0' });

/** SNP_PLATFORM_STATUS, legal in every state. While SNP is initialised the page that the firmware writes to must be its own. */
const snpPlatformStatus: Handler = (call) => {
  const { psp, user, data } = call;
  const kernelRef = 'sev_ioctl_do_snp_platform_status';
  if (data === 0n) return noStructure(kernelRef);
  const page = psp.buffers.blobPage(0);
  const owner = psp.snp?.initialised === true ? psp.snp : null;
  if (owner?.markFirmware(page) === false) return new Failure('EFAULT', 'RMPUPDATE_FAILED', kernelRef);
  const buffer = new Uint8Array(SNP_PLATFORM_STATUS.size);
  SNP_PLATFORM_STATUS.statusPaddr.set(buffer, page.hpa);
  const refused = run(call, 'SNP_PLATFORM_STATUS', buffer, kernelRef);
  if (owner?.reclaim(page) === false) return new Failure('EFAULT', 'PAGE_NOT_RECLAIMED', kernelRef);
  return refused ?? user.copyOut(data, psp.buffers.read(psp.buffers.blob(0), sev_user_data_snp_status.size));
};

const snpCommit: Handler = (call) => {
  const { psp } = call;
  const kernelRef = 'sev_ioctl_do_snp_commit';
  if (psp.snp === null) return noSnp(kernelRef);
  return psp.snp.withInit(() => {
    const buffer = new Uint8Array(SNP_COMMIT.size);
    SNP_COMMIT.length.set(buffer, SNP_COMMIT.size);
    return run(call, 'SNP_COMMIT', buffer, kernelRef);
  });
};

/** SNP_SET_CONFIG: the structure is the firmware's command buffer, reserved bytes included. */
const snpSetConfig: Handler = (call) => {
  const { psp, user, data, writable } = call;
  const kernelRef = 'sev_ioctl_do_snp_set_config';
  if (data === 0n) return noStructure(kernelRef);
  if (!writable) return readOnly(kernelRef);
  const config = user.copyIn(data, sev_user_data_snp_config.size);
  if (failed(config)) return config;
  if (psp.snp === null) return noSnp(kernelRef);
  return psp.snp.withInit(() => run(call, 'SNP_CONFIG', config, kernelRef));
};

const snpVlekLoad: Handler = (call) => {
  const { psp, user, data, writable } = call;
  const kernelRef = 'sev_ioctl_do_snp_vlek_load';
  if (data === 0n) return noStructure(kernelRef);
  if (!writable) return readOnly(kernelRef);
  const bytes = user.copyIn(data, sev_user_data_snp_vlek_load.size);
  if (failed(bytes)) return bytes;
  const given = sev_user_data_snp_vlek_load.decode(bytes);
  if (given.len !== sev_user_data_snp_vlek_load.size) return invalid('VLEK_LENGTH', kernelRef, 'len', given.len);
  if (given.vlek_wrapped_version !== 0)
    return invalid('VLEK_WRAPPED_VERSION', kernelRef, 'vlek_wrapped_version', given.vlek_wrapped_version);
  const blob = pspCopyUserBlob(user, 'vlek_wrapped_address', given.vlek_wrapped_address, SNP_WRAPPED_VLEK_HASHSTICK_SIZE);
  if (failed(blob)) return blob;
  if (psp.snp === null) return noSnp(kernelRef);
  return psp.snp.withInit(() => {
    psp.buffers.write(psp.buffers.blob(0), blob);
    SNP_VLEK_LOAD.wrappedPaddr.set(bytes, psp.buffers.blob(0));
    return run(call, 'SNP_VLEK_LOAD', bytes, kernelRef);
  });
};

const HANDLERS: ReadonlyMap<number, Handler> = new Map([
  [SEV_USER_CMD.FACTORY_RESET, factoryReset],
  [SEV_USER_CMD.PLATFORM_STATUS, platformStatus],
  [SEV_USER_CMD.PEK_GEN, generate('PEK_GEN')],
  [SEV_USER_CMD.PEK_CSR, pekCsr],
  [SEV_USER_CMD.PDH_GEN, generate('PDH_GEN')],
  [SEV_USER_CMD.PDH_CERT_EXPORT, pdhCertExport],
  [SEV_USER_CMD.PEK_CERT_IMPORT, pekCertImport],
  [SEV_USER_CMD.GET_ID, getId],
  [SEV_USER_CMD.GET_ID2, getId2],
  [SEV_USER_CMD.SNP_PLATFORM_STATUS, snpPlatformStatus],
  [SEV_USER_CMD.SNP_COMMIT, snpCommit],
  [SEV_USER_CMD.SNP_SET_CONFIG, snpSetConfig],
  [SEV_USER_CMD.SNP_VLEK_LOAD, snpVlekLoad],
]);

/** An open `/dev/sev` (drivers/crypto/ccp/sev-dev.c): the owner's commands on the platform, and KVM's proof of access. */
export class SevFile implements FileOperations {
  readonly name = '/dev/sev';

  constructor(
    private readonly psp: Psp,
    private readonly inode: number,
  ) {}

  /** `sev_ioctl`. `error` is written back also after a failure; a firmware's refusal is EIO. */
  *ioctl(_current: Task, file: File, request: number, arg: IoctlArg): MightSleep<Result<number>> {
    if (request !== IOCTL.SEV_ISSUE_CMD)
      return new Failure('EINVAL', 'UNKNOWN_IOCTL', 'sev_ioctl', { request: `0x${request.toString(16)}` });
    const bytes = arg.user.copyIn(arg.value, sev_issue_cmd.size);
    if (failed(bytes)) return bytes;
    const command = sev_issue_cmd.decode(bytes);
    const handler = HANDLERS.get(command.cmd);
    if (handler === undefined) return invalid('SEV_COMMAND_UNKNOWN', 'sev_ioctl', 'cmd', command.cmd);
    const writable = (file.flags & OPEN.ACCMODE) !== OPEN.RDONLY;
    const call: Call = { psp: this.psp, user: arg.user, data: command.data, writable, error: command.error };
    const failure = handler(call);
    const error = failure?.fwError ?? call.error;
    return arg.user.copyOut(arg.value, sev_issue_cmd.encode({ ...command, error })) ?? failure ?? 0;
  }

  stat(): FileStat {
    return { size: 0, blksize: 4096, blocks: 0, inode: this.inode, mode: 0o020600 };
  }
}

/** `sev_dev_init`: `/dev/sev` exists on a host with a secure processor. */
export const sevDevInit = (kernel: Kernel): void => {
  const { psp } = kernel;
  if (psp === null) return;
  kernel.devices.set('/dev/sev', (flags) => new File(new SevFile(psp, kernel.allocateInode()), flags));
};
