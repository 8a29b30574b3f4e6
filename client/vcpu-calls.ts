import type {
  Int64Init,
  KvmCpuid2Init,
  KvmDebugregsInit,
  KvmDeviceAttrInit,
  KvmEnableCapInit,
  KvmFpuInit,
  KvmGuestDebugInit,
  KvmInterruptInit,
  KvmLapicStateInit,
  KvmMpStateInit,
  KvmMsrsInit,
  KvmOneRegInit,
  KvmPreFaultMemoryInit,
  KvmRegsInit,
  KvmRunInputInit,
  KvmSignalMaskInit,
  KvmSregs2Init,
  KvmSregsInit,
  KvmTdxCmdInit,
  KvmTprAccessCtlInit,
  KvmTranslationInit,
  KvmVapicAddrInit,
  KvmVcpuEventsInit,
  KvmXcrsInit,
  KvmXsaveInit,
} from '../gen/messages.js';
import { KvmVcpu } from '../gen/services.js';
import { ENDLESS } from './call.js';
import { File } from './file.js';
import { handleOf } from './handle.js';
import { CPUID_ENTRIES, msrsRead } from './msrs.js';
import { bare, ioctl, out, present, ret } from './syscall.js';
import { exitOf } from './vcpu-exit.js';

/**
 * The ioctls of a vCPU, under their names in Documentation/virt/kvm/api.rst. `EIO (gate)`: its VM is dead, or has moved and
 * its policy refuses the call, or the caller is not the process that made the VM. Registers of a SEV-ES guest that has been
 * launched are encrypted.
 */
export const vcpuCalls = {
  /**
   * KVM_RUN: writes `input` into kvm_run, enters the guest, and answers with the exit, a union on `reason`.
   * Errno: EIO (gate; the VM died while it ran), EINTR (signal, or immediate_exit; exit_reason as it is in kvm_run),
   * EFAULT (memory_fault exit), EAGAIN (woken by INIT or SIPI), EINVAL (bad registers, need_init, no save
   * area), ENOMEM.
   * The `try` form has the exit also with a failure. There is no deadline; a signal, also an AbortSignal, ends it.
   */
  run: ioctl(
    KvmVcpu.run,
    (fd, input?: KvmRunInputInit) => ({ fd, input }),
    ({ run }) => exitOf(present(run, 'run')),
    ENDLESS,
  ),
  /**
   * KVM_GET_REGS: the general registers.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  getRegs: ioctl(KvmVcpu.getRegs, bare, out('regs')),
  /**
   * KVM_SET_REGS: sets all general registers; bit 1 of rflags is forced on.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  setRegs: ioctl(KvmVcpu.setRegs, (fd, regs: KvmRegsInit) => ({ fd, regs }), ret),
  /**
   * KVM_GET_SREGS: segment, table and control registers.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  getSregs: ioctl(KvmVcpu.getSregs, bare, out('sregs')),
  /**
   * KVM_SET_SREGS: sets all of them; start from what GetSregs answered.
   * Errno: EIO (gate), EINVAL (a combination that the CPU forbids, a C-bit in CR3 that the guest may not have;
   * encrypted state).
   */
  setSregs: ioctl(KvmVcpu.setSregs, (fd, sregs: KvmSregsInit) => ({ fd, sregs }), ret),
  /**
   * KVM_GET_SREGS2: as KVM_GET_SREGS, with PDPTRs instead of pending interrupts.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  getSregs2: ioctl(KvmVcpu.getSregs2, bare, out('sregs2')),
  /**
   * KVM_SET_SREGS2: as KVM_SET_SREGS, with PDPTRs instead of pending interrupts.
   * Errno: EIO (gate), EINVAL (as KVM_SET_SREGS; unknown flags).
   */
  setSregs2: ioctl(KvmVcpu.setSregs2, (fd, sregs2: KvmSregs2Init) => ({ fd, sregs2 }), ret),
  /**
   * KVM_TRANSLATE: walks the guest's page tables; `valid` is 0 where nothing is mapped.
   * Errno: EIO (gate).
   */
  translate: ioctl(KvmVcpu.translate, (fd, translation: KvmTranslationInit) => ({ fd, translation }), out('translation')),
  /**
   * KVM_INTERRUPT: queues an external interrupt, without a full in-kernel irqchip.
   * Errno: EIO (gate), EINVAL (vector above 255), ENXIO (full in-kernel irqchip), EEXIST (split irqchip, one is
   * pending).
   */
  interrupt: ioctl(KvmVcpu.interrupt, (fd, interrupt: KvmInterruptInit) => ({ fd, interrupt }), ret),
  /**
   * KVM_GET_MSRS: the MSRs that were read, up to the first that could not be.
   * Errno: EIO (gate), E2BIG (256 entries or more), ENOMEM.
   */
  getMsrs: ioctl(KvmVcpu.getMsrs, (fd, msrs: KvmMsrsInit) => ({ fd, msrs }), msrsRead),
  /**
   * KVM_SET_MSRS: ret is how many were set, up to the first that could not be.
   * Errno: EIO (gate), E2BIG (256 entries or more), ENOMEM.
   */
  setMsrs: ioctl(KvmVcpu.setMsrs, (fd, msrs: KvmMsrsInit) => ({ fd, msrs }), ret),
  /**
   * KVM_SET_SIGNAL_MASK: the signals that are blocked while KVM_RUN runs; without signal_mask (NULL) the mask is off.
   * Errno: EIO (gate), EINVAL (len is not 8).
   */
  setSignalMask: ioctl(KvmVcpu.setSignalMask, (fd, signalMask?: KvmSignalMaskInit) => ({ fd, signal_mask: signalMask }), ret),
  /**
   * KVM_GET_FPU: x87 and SSE registers.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  getFpu: ioctl(KvmVcpu.getFpu, bare, out('fpu')),
  /**
   * KVM_SET_FPU: sets x87 and SSE registers.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  setFpu: ioctl(KvmVcpu.setFpu, (fd, fpu: KvmFpuInit) => ({ fd, fpu }), ret),
  /**
   * KVM_GET_LAPIC: the registers of the in-kernel local APIC.
   * Errno: EIO (gate), EINVAL (no in-kernel LAPIC).
   */
  getLapic: ioctl(KvmVcpu.getLapic, bare, out('lapic')),
  /**
   * KVM_SET_LAPIC: sets the registers of the in-kernel local APIC.
   * Errno: EIO (gate), EINVAL (no in-kernel LAPIC; bad state).
   */
  setLapic: ioctl(KvmVcpu.setLapic, (fd, lapic: KvmLapicStateInit) => ({ fd, lapic }), ret),
  /**
   * KVM_SET_CPUID2: what CPUID tells the guest.
   * Errno: EIO (gate), E2BIG (too many entries), EINVAL (bad entries; another set after the vCPU has run), ENOMEM.
   */
  setCpuid2: ioctl(KvmVcpu.setCpuid2, (fd, cpuid: KvmCpuid2Init) => ({ fd, cpuid }), ret),
  /**
   * KVM_GET_CPUID2: what CPUID tells the guest; `nent` is the room for entries.
   * Errno: EIO (gate), E2BIG (more than there is room for).
   */
  getCpuid2: ioctl(KvmVcpu.getCpuid2, (fd, nent: number = CPUID_ENTRIES) => ({ fd, cpuid: { nent } }), out('cpuid')),
  /**
   * KVM_GET_MP_STATE: whether the vCPU runs, halts or waits for INIT; takes pending INIT and SIPI first.
   * Errno: EIO (gate).
   */
  getMpState: ioctl(KvmVcpu.getMpState, bare, out('mp_state')),
  /**
   * KVM_SET_MP_STATE: sets it; all but RUNNABLE need an in-kernel LAPIC.
   * Errno: EIO (gate), EINVAL (unknown; no LAPIC; INIT is blocked).
   */
  setMpState: ioctl(KvmVcpu.setMpState, (fd, mpState: KvmMpStateInit) => ({ fd, mp_state: mpState }), ret),
  /**
   * KVM_NMI: queues an NMI.
   * Errno: EIO (gate).
   */
  nmi: ioctl(KvmVcpu.nmi, bare, ret),
  /**
   * KVM_SMI: queues an SMI.
   * Errno: EIO (gate), ENOTTY (no SMM).
   */
  smi: ioctl(KvmVcpu.smi, bare, ret),
  /**
   * KVM_SET_GUEST_DEBUG: breakpoints and single steps, which exit with KVM_EXIT_DEBUG.
   * Errno: EIO (gate), EINVAL (encrypted state), EBUSY (an exception is pending).
   */
  setGuestDebug: ioctl(KvmVcpu.setGuestDebug, (fd, guestDebug: KvmGuestDebugInit) => ({ fd, guest_debug: guestDebug }), ret),
  /**
   * KVM_GET_VCPU_EVENTS: pending exceptions, interrupts, NMIs and SMIs.
   * Errno: EIO (gate).
   */
  getVcpuEvents: ioctl(KvmVcpu.getVcpuEvents, bare, out('vcpu_events')),
  /**
   * KVM_SET_VCPU_EVENTS: sets them; start from what GetVcpuEvents answered.
   * Errno: EIO (gate), EINVAL (unknown flags; bad exception).
   */
  setVcpuEvents: ioctl(KvmVcpu.setVcpuEvents, (fd, vcpuEvents: KvmVcpuEventsInit) => ({ fd, vcpu_events: vcpuEvents }), ret),
  /**
   * KVM_GET_DEBUGREGS: DR0 to DR3, DR6 and DR7.
   * Errno: EIO (gate), EINVAL (encrypted state).
   */
  getDebugregs: ioctl(KvmVcpu.getDebugregs, bare, out('debugregs')),
  /**
   * KVM_SET_DEBUGREGS: sets them.
   * Errno: EIO (gate), EINVAL (flags; reserved bits; encrypted state).
   */
  setDebugregs: ioctl(KvmVcpu.setDebugregs, (fd, debugregs: KvmDebugregsInit) => ({ fd, debugregs }), ret),
  /**
   * KVM_SET_TSC_KHZ: frequency of the vCPU's TSC in kHz; 0 is the host's.
   * Errno: EIO (gate), EINVAL (out of range).
   */
  setTscKhz: ioctl(KvmVcpu.setTscKhz, (fd, tscKhz: Int64Init) => ({ fd, tsc_khz: tscKhz }), ret),
  /**
   * KVM_GET_TSC_KHZ: ret is the frequency of the vCPU's TSC in kHz.
   * Errno: EIO (gate).
   */
  getTscKhz: ioctl(KvmVcpu.getTscKhz, bare, ret),
  /**
   * KVM_ENABLE_CAP on a vCPU.
   * Errno: EIO (gate), EINVAL (flags; unknown capability).
   */
  enableCap: ioctl(KvmVcpu.enableCap, (fd, enableCap: KvmEnableCapInit) => ({ fd, enable_cap: enableCap }), ret),
  /**
   * KVM_GET_XSAVE: the XSAVE area, 4096 bytes.
   * Errno: EIO (gate), EINVAL (encrypted state; a guest whose area is larger), ENOMEM.
   */
  getXsave: ioctl(KvmVcpu.getXsave, bare, out('xsave')),
  /**
   * KVM_SET_XSAVE: sets the XSAVE area.
   * Errno: EIO (gate), EINVAL (unsupported features; bad MXCSR; encrypted state).
   */
  setXsave: ioctl(KvmVcpu.setXsave, (fd, xsave: KvmXsaveInit) => ({ fd, xsave }), ret),
  /**
   * KVM_GET_XSAVE2: the XSAVE area with as many bytes as KVM_CAP_XSAVE2 says.
   * Errno: EIO (gate), EINVAL (encrypted state), ENOMEM.
   */
  getXsave2: ioctl(KvmVcpu.getXsave2, bare, out('xsave')),
  /**
   * KVM_GET_XCRS: the extended control registers.
   * Errno: EIO (gate), EINVAL (no XSAVE; encrypted state).
   */
  getXcrs: ioctl(KvmVcpu.getXcrs, bare, out('xcrs')),
  /**
   * KVM_SET_XCRS: sets them.
   * Errno: EIO (gate), EINVAL (no XSAVE; more than 16; flags; bad value; encrypted state).
   */
  setXcrs: ioctl(KvmVcpu.setXcrs, (fd, xcrs: KvmXcrsInit) => ({ fd, xcrs }), ret),
  /**
   * KVM_MEMORY_ENCRYPT_OP on a vCPU: TDX only.
   * Errno: EIO (gate), ENOTTY (no TDX), EFAULT, EINVAL.
   */
  memoryEncryptOp: ioctl(KvmVcpu.memoryEncryptOp, (fd, tdxCmd: KvmTdxCmdInit) => ({ fd, tdx_cmd: tdxCmd }), out('tdx_cmd')),
  /**
   * KVM_GET_STATS_FD: a file from which the vCPU's statistics can be read; it keeps the VM alive.
   * Errno: EIO (gate), EMFILE.
   */
  getStatsFd: ioctl(KvmVcpu.getStatsFd, bare, handleOf(File)),
  /**
   * KVM_PRE_FAULT_MEMORY: maps guest memory before it is touched; gpa and size come back advanced.
   * Errno: EIO (gate), EINVAL (flags, alignment, wrap), EOPNOTSUPP (not possible in this VM yet), ENOENT (no
   * slot), EINTR.
   */
  preFaultMemory: ioctl(KvmVcpu.preFaultMemory, (fd, range: KvmPreFaultMemoryInit) => ({ fd, range }), out('range')),
  /**
   * KVM_KVMCLOCK_CTRL: tells the guest that it was paused.
   * Errno: EIO (gate), EINVAL (the guest has no kvmclock).
   */
  kvmclockCtrl: ioctl(KvmVcpu.kvmclockCtrl, bare, ret),
  /**
   * KVM_SET_VAPIC_ADDR: the page through which a guest without TPR shadow sees its task priority.
   * Errno: EIO (gate), EINVAL (no in-kernel LAPIC; address in no slot), EFAULT.
   */
  setVapicAddr: ioctl(KvmVcpu.setVapicAddr, (fd, vapicAddr: KvmVapicAddrInit) => ({ fd, vapic_addr: vapicAddr }), ret),
  /**
   * KVM_TPR_ACCESS_REPORTING: exits on accesses to the task priority register.
   * Errno: EIO (gate), EINVAL (flags).
   */
  tprAccessReporting: ioctl(
    KvmVcpu.tprAccessReporting,
    (fd, tprAccessCtl: KvmTprAccessCtlInit) => ({ fd, tpr_access_ctl: tprAccessCtl }),
    out('tpr_access_ctl'),
  ),
  /**
   * KVM_GET_ONE_REG: one register by its number.
   * Errno: EIO (gate), EINVAL (kernels without it; unknown register).
   */
  getOneReg: ioctl(KvmVcpu.getOneReg, (fd, oneReg: KvmOneRegInit) => ({ fd, one_reg: oneReg }), out('one_reg')),
  /**
   * KVM_SET_ONE_REG: sets one register by its number.
   * Errno: EIO (gate), EINVAL (kernels without it; unknown register).
   */
  setOneReg: ioctl(KvmVcpu.setOneReg, (fd, oneReg: KvmOneRegInit) => ({ fd, one_reg: oneReg }), ret),
  /**
   * KVM_SET_DEVICE_ATTR on a vCPU: group 0 (TSC), attribute 0 (its offset).
   * Errno: EIO (gate), ENXIO (unknown group or attribute), EFAULT.
   */
  setDeviceAttr: ioctl(KvmVcpu.setDeviceAttr, (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }), ret),
  /**
   * KVM_GET_DEVICE_ATTR on a vCPU.
   * Errno: EIO (gate), ENXIO (unknown group or attribute), EFAULT.
   */
  getDeviceAttr: ioctl(
    KvmVcpu.getDeviceAttr,
    (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }),
    out('device_attr'),
  ),
  /**
   * KVM_HAS_DEVICE_ATTR on a vCPU: ret is 0 if the attribute is there.
   * Errno: EIO (gate), ENXIO (unknown group or attribute).
   */
  hasDeviceAttr: ioctl(KvmVcpu.hasDeviceAttr, (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }), ret),
} as const;
