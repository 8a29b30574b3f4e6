import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { KVM_SEV_CMD, type KvmSevCmdName, kvm_sev_cmd } from '../../uapi/sev-structs.js';
import type { Vm } from '../vm.js';
import type { SevHandler } from './sev-command.js';
import { dbgDecrypt, dbgEncrypt } from './sev-debug.js';
import { isMirror, isSevSnpGuest, toSevInfo } from './sev-info.js';
import { sevEsInit, sevInit, sevInit2 } from './sev-init.js';
import {
  getAttestationReport,
  guestStatus,
  launchFinish,
  launchMeasure,
  launchSecret,
  launchStart,
  launchUpdateData,
} from './sev-launch.js';
import { type SevModule, sevNotEnabled } from './sev-module.js';
import { receiveFinish, receiveStart, receiveUpdateData } from './sev-receive.js';
import { sendCancel, sendFinish, sendStart, sendUpdateData } from './sev-send.js';
import { launchUpdateVmsa } from './sev-vcpu.js';
import { snpEnableReqCerts, snpLaunchFinish, snpLaunchStart } from './snp/launch.js';
import { snpLaunchUpdate } from './snp/launch-update.js';

/** The commands that this kernel has. SEND_UPDATE_VMSA, RECEIVE_UPDATE_VMSA and CERT_EXPORT no kernel ever had. */
const COMMANDS: readonly (readonly [KvmSevCmdName, SevHandler])[] = [
  ['INIT', sevInit],
  ['ES_INIT', sevEsInit],
  ['INIT2', sevInit2],
  ['LAUNCH_START', launchStart],
  ['LAUNCH_UPDATE_DATA', launchUpdateData],
  ['LAUNCH_UPDATE_VMSA', launchUpdateVmsa],
  ['LAUNCH_SECRET', launchSecret],
  ['LAUNCH_MEASURE', launchMeasure],
  ['LAUNCH_FINISH', launchFinish],
  ['GUEST_STATUS', guestStatus],
  ['DBG_DECRYPT', dbgDecrypt],
  ['DBG_ENCRYPT', dbgEncrypt],
  ['GET_ATTESTATION_REPORT', getAttestationReport],
  ['SEND_START', sendStart],
  ['SEND_UPDATE_DATA', sendUpdateData],
  ['SEND_FINISH', sendFinish],
  ['SEND_CANCEL', sendCancel],
  ['RECEIVE_START', receiveStart],
  ['RECEIVE_UPDATE_DATA', receiveUpdateData],
  ['RECEIVE_FINISH', receiveFinish],
  ['SNP_LAUNCH_START', snpLaunchStart],
  ['SNP_LAUNCH_UPDATE', snpLaunchUpdate],
  ['SNP_LAUNCH_FINISH', snpLaunchFinish],
  ['SNP_ENABLE_REQ_CERTS', snpEnableReqCerts],
];

const HANDLERS: ReadonlyMap<number, SevHandler> = new Map(COMMANDS.map(([name, handler]) => [KVM_SEV_CMD[name], handler]));

/** `is_cmd_allowed_from_mirror`. */
const MIRROR_COMMANDS: ReadonlySet<number> = new Set([
  KVM_SEV_CMD.LAUNCH_UPDATE_VMSA,
  KVM_SEV_CMD.GUEST_STATUS,
  KVM_SEV_CMD.DBG_DECRYPT,
  KVM_SEV_CMD.DBG_ENCRYPT,
]);

const KERNEL_REF = 'sev_mem_enc_ioctl';

/** What may be asked at all of this VM; the command itself is looked at afterwards. */
const admit = (vm: Vm, id: number): Failure | null => {
  const details = { object: `vm ${vm.id}`, field: 'id', given: String(id) };
  if (isMirror(vm) && !MIRROR_COMMANDS.has(id)) return new Failure('EINVAL', 'MIRROR_COMMAND', KERNEL_REF, details);
  if (isSevSnpGuest(vm) && id < KVM_SEV_CMD.SNP_LAUNCH_START)
    return new Failure('EPERM', 'SNP_GUEST_COMMAND', KERNEL_REF, details);
  return null;
};

/**
 * KVM_MEMORY_ENCRYPT_OP (`sev_mem_enc_ioctl`). The gate has been passed. A NULL argument asks whether SEV is there: 0.
 * `kvm_sev_cmd` goes back after every known command, so that `error` is seen on failure too.
 */
export function* sevMemEncIoctl(module: SevModule, current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  if (!module.enabled) return sevNotEnabled();
  if (arg.value === 0n) return 0;
  const bytes = arg.user.copyIn(arg.value, kvm_sev_cmd.size);
  if (failed(bytes)) return bytes;
  const command = kvm_sev_cmd.decode(bytes);
  yield* vm.lock.lock(current);
  try {
    const refused = admit(vm, command.id);
    if (refused !== null) return refused;
    const handler = HANDLERS.get(command.id);
    if (handler === undefined)
      return new Failure('EINVAL', 'SEV_COMMAND_UNKNOWN', KERNEL_REF, { field: 'id', given: String(command.id) });
    const sev = toSevInfo(vm);
    const step = handler({ module, current, vm, sev, user: arg.user, data: command.data, sevFd: command.sev_fd });
    const failure = step === null || failed(step) ? step : yield* step;
    const error = failure === null ? 0 : (failure.fwError ?? command.error);
    return arg.user.copyOut(arg.value, kvm_sev_cmd.encode({ ...command, error })) ?? failure ?? 0;
  } finally {
    vm.lock.unlock(current);
  }
}
