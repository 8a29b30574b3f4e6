import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_tpr_access_ctl } from '../../uapi/kvm-structs.js';
import type { Vcpu } from '../vcpu.js';

/** KVM_TPR_ACCESS_REPORTING; the structure is written back as it came. EINVAL: flags. */
export const setTprAccessReporting = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const data = arg.user.copyIn(arg.value, kvm_tpr_access_ctl.size);
  if (failed(data)) return data;
  const { enabled, flags } = kvm_tpr_access_ctl.decode(data);
  if (flags !== 0)
    return new Failure('EINVAL', 'TPR_ACCESS_FLAGS', 'vcpu_ioctl_tpr_access_reporting', {
      field: 'flags',
      given: String(flags),
      allowed: '0',
    });
  vcpu.arch.tprAccessReporting = enabled !== 0;
  return arg.user.copyOut(arg.value, data) ?? 0;
};
