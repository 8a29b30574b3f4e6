import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import type { MaySleep } from '../../sched/wait.js';
import { IOCTL } from '../../uapi/ioctls.js';
import { kvm_enable_cap } from '../../uapi/kvm-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { getCpuid2, setCpuid, setCpuid2 } from './cpuid-ioctl.js';
import { getDebugregs, setDebugregs, setGuestDebug } from './debug.js';
import { getFpu, setFpu } from './fpu.js';
import { injectNmi } from './inject.js';
import { irqVcpuIoctl } from './irq/lapic-ioctl.js';
import { setMce, setupMce } from './mce.js';
import { getMpState, setMpState } from './mp-state.js';
import { getMsrs, setMsrs } from './msrs.js';
import { getRegList, oneReg } from './one-reg.js';
import { preFaultMemory } from './pre-fault.js';
import { getRegs, setRegs } from './regs.js';
import { getSregs, getSregs2, setSregs, setSregs2 } from './sregs.js';
import { setTprAccessReporting } from './tpr.js';
import { translate } from './translate.js';
import { setTscKhz, tscAttribute } from './tsc.js';
import { getVcpuEvents, setVcpuEvents } from './vcpu-events.js';
import { getXcrs, getXsave, setXcrs, setXsave } from './xsave.js';

type Handler = (vcpu: Vcpu, arg: IoctlArg) => Result<number>;

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [IOCTL.KVM_GET_REGS, getRegs],
  [IOCTL.KVM_SET_REGS, setRegs],
  [IOCTL.KVM_GET_SREGS, getSregs],
  [IOCTL.KVM_SET_SREGS, setSregs],
  [IOCTL.KVM_GET_SREGS2, getSregs2],
  [IOCTL.KVM_SET_SREGS2, setSregs2],
  [IOCTL.KVM_TRANSLATE, translate],
  [IOCTL.KVM_GET_MSRS, getMsrs],
  [IOCTL.KVM_SET_MSRS, setMsrs],
  [IOCTL.KVM_SET_CPUID, setCpuid],
  [IOCTL.KVM_SET_CPUID2, setCpuid2],
  [IOCTL.KVM_GET_CPUID2, getCpuid2],
  [IOCTL.KVM_GET_FPU, getFpu],
  [IOCTL.KVM_SET_FPU, setFpu],
  [IOCTL.KVM_GET_XSAVE, getXsave],
  [IOCTL.KVM_GET_XSAVE2, getXsave],
  [IOCTL.KVM_SET_XSAVE, setXsave],
  [IOCTL.KVM_GET_XCRS, getXcrs],
  [IOCTL.KVM_SET_XCRS, setXcrs],
  [IOCTL.KVM_GET_MP_STATE, getMpState],
  [IOCTL.KVM_SET_MP_STATE, setMpState],
  [IOCTL.KVM_GET_VCPU_EVENTS, getVcpuEvents],
  [IOCTL.KVM_SET_VCPU_EVENTS, setVcpuEvents],
  [IOCTL.KVM_GET_DEBUGREGS, getDebugregs],
  [IOCTL.KVM_SET_DEBUGREGS, setDebugregs],
  [IOCTL.KVM_SET_GUEST_DEBUG, setGuestDebug],
  [IOCTL.KVM_SET_TSC_KHZ, setTscKhz],
  [IOCTL.KVM_GET_TSC_KHZ, ({ arch }) => arch.tscKhz],
  [IOCTL.KVM_TPR_ACCESS_REPORTING, setTprAccessReporting],
  [IOCTL.KVM_X86_SETUP_MCE, setupMce],
  [IOCTL.KVM_X86_SET_MCE, setMce],
  [IOCTL.KVM_GET_ONE_REG, (vcpu, arg) => oneReg(vcpu, arg, false)],
  [IOCTL.KVM_SET_ONE_REG, (vcpu, arg) => oneReg(vcpu, arg, true)],
  [IOCTL.KVM_GET_REG_LIST, (_vcpu, arg) => getRegList(arg)],
  [IOCTL.KVM_HAS_DEVICE_ATTR, (vcpu, arg) => tscAttribute(vcpu, IOCTL.KVM_HAS_DEVICE_ATTR, arg)],
  [IOCTL.KVM_GET_DEVICE_ATTR, (vcpu, arg) => tscAttribute(vcpu, IOCTL.KVM_GET_DEVICE_ATTR, arg)],
  [IOCTL.KVM_SET_DEVICE_ATTR, (vcpu, arg) => tscAttribute(vcpu, IOCTL.KVM_SET_DEVICE_ATTR, arg)],
  [
    IOCTL.KVM_NMI,
    (vcpu) => {
      injectNmi(vcpu);
      return 0;
    },
  ],
  // No guest has registered a kvmclock page: the feature is not offered.
  [IOCTL.KVM_KVMCLOCK_CTRL, () => new Failure('EINVAL', 'NO_KVMCLOCK', 'kvm_set_guest_paused')],
  [IOCTL.KVM_SMI, () => new Failure('ENOTTY', 'NO_SMM', 'kvm_inject_smi')],
  [IOCTL.KVM_ENABLE_CAP, (_vcpu, arg) => enableVcpuCap(arg)],
]);

/** KVM_ENABLE_CAP on a vCPU: only Hyper-V's capabilities can be enabled there, and they are not offered. */
const enableVcpuCap = (arg: IoctlArg): Result<number> => {
  const cap = copyStruct(arg, kvm_enable_cap);
  if (failed(cap)) return cap;
  const field = cap.flags !== 0 ? 'flags' : 'cap';
  return new Failure('EINVAL', 'VCPU_CAP_NOT_ENABLEABLE', 'kvm_vcpu_ioctl_enable_cap', { field, given: String(cap[field]) });
};

/** The x86 part of `kvm_vcpu_ioctl`, under the vCPU's mutex. EINVAL for a request that a vCPU does not know. */
export const kvmArchVcpuIoctl = (current: Task, vcpu: Vcpu, request: number, arg: IoctlArg): MaySleep<Result<number>> => {
  if (request === IOCTL.KVM_PRE_FAULT_MEMORY) return preFaultMemory(current, vcpu, arg);
  if (request === IOCTL.KVM_MEMORY_ENCRYPT_OP) {
    const { ops } = vcpu.vm.kernel;
    if (ops.vcpuMemEncIoctl !== undefined) return ops.vcpuMemEncIoctl(current, vcpu, arg);
    return new Failure('ENOTTY', 'VENDOR_CANNOT', 'kvm_arch_vcpu_ioctl', { vendor: vcpu.vm.kernel.config.vendor });
  }
  const handler = HANDLERS.get(request);
  if (handler !== undefined) return handler(vcpu, arg);
  return (
    irqVcpuIoctl(vcpu, request, arg) ??
    new Failure('EINVAL', 'IOCTL_UNKNOWN', 'kvm_arch_vcpu_ioctl', { request: `0x${request.toString(16)}` })
  );
};
