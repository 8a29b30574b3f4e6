import { LAUNCH_UPDATE } from '../../../hardware/amd/command-buffers.js';
import { loadSaveArea, storeSaveArea } from '../../../hardware/amd/save-area.js';
import { SEV_FEATURE, VMSA } from '../../../hardware/amd/vmsa.js';
import { CpuState } from '../../../hardware/cpu/state.js';
import { PAGE_SIZE } from '../../../hardware/units.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { Page } from '../../mm/page.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';
import { issue, type SevCall, type SevHandler } from './sev-command.js';
import { isSevEsGuest, isSevSnpGuest, toSevInfo } from './sev-info.js';
import type { SevModule } from './sev-module.js';
import { allocateSafePage } from './snp/firmware-page.js';
import { rmpMakeShared } from './snp/rmp.js';
import { toSvm } from './vcpu-svm.js';

/** DR7 after reset. */
const DR7_RESET = 0x400n;
/** IA32_PAT after reset. */
const PAT_RESET = 0x0007_0406_0007_0406n;

/** `init_vmcb`'s SEV part (`sev_init_vmcb`): the VMCB of a vCPU of a SEV guest. */
export const initSevVmcb = (vcpu: Vcpu): void => {
  const { vmcb, sevEs } = toSvm(vcpu);
  vmcb.sevEnabled = true;
  vcpu.arch.flushTlb();
  if (!isSevEsGuest(vcpu.vm)) return;
  vmcb.sevEsEnabled = true;
  vmcb.snpEnabled = isSevSnpGuest(vcpu.vm);
  if (!sevEs.hasGuestVmsa) vmcb.vmsa = sevEs.saveArea?.page ?? null;
};

/** The SEV part of `svm_vcpu_create`: a vCPU of a SEV-ES guest gets its save area at once. ENOMEM. */
export const sevVcpuCreate = (module: SevModule, vcpu: Vcpu): Failure | null => {
  const { vm } = vcpu;
  if (!toSevInfo(vm).active) return null;
  if (isSevEsGuest(vm)) {
    const page = allocateSafePage(module);
    if (failed(page)) return page;
    toSvm(vcpu).sevEs.saveArea = { page, charge: vm.kmem.charge('vmsa', PAGE_SIZE) };
  }
  initSevVmcb(vcpu);
  return null;
};

/** `sev_free_vcpu`: the save area's lines leave the caches before its page goes back to the host. */
export const sevVcpuFree = (module: SevModule, vcpu: Vcpu): void => {
  const { sevEs } = toSvm(vcpu);
  const { saveArea } = sevEs;
  if (saveArea === null) return;
  sevEs.saveArea = null;
  // VM_PAGE_FLUSH, for the caches of this CPU are not coherent across the C-bit.
  saveArea.page.frame.flush();
  module.kernel.costs.charge('clflush_page');
  saveArea.charge.release();
  // A page that stays assigned to the guest is leaked, for the host can never write to it again.
  if (!isSevSnpGuest(vcpu.vm) || rmpMakeShared(module, saveArea.page.frame)) saveArea.page.put();
};

/**
 * `kvm_lock_all_vcpus` in its killable form: every vCPU mutex, in the order of their indices. Waits for each vCPU to
 * leave KVM_RUN. EINTR, with none held.
 */
export function* lockAllVcpus({ kernel }: Pick<SevModule, 'kernel'>, current: Task, vm: Vm): MightSleep<Failure | null> {
  const held: Vcpu[] = [];
  for (const vcpu of vm.vcpus) {
    const killed = yield* vcpu.mutex.lockKillable(current);
    if (killed !== null) {
      for (const locked of held.reverse()) locked.mutex.unlock(current);
      return killed;
    }
    held.push(vcpu);
  }
  kernel.costs.charge('vcpu_mutex', held.length);
  return null;
}

export const unlockAllVcpus = (current: Task, vm: Vm): void => {
  for (const vcpu of vm.vcpus) vcpu.mutex.unlock(current);
};

/** Whether a vCPU is being created: then what is true of all vCPUs may not be of the next one. EBUSY. */
export const creationInProgress = (vm: Vm, kernelRef: string): Failure | null =>
  vm.createdVcpus === vm.vcpus.length
    ? null
    : new Failure('EBUSY', 'VCPU_CREATION_IN_PROGRESS', kernelRef, {
        object: `vm ${vm.id}`,
        created: String(vm.createdVcpus),
        online: String(vm.vcpus.length),
      });

/** Copies all registers of a CPU. */
const copyState = (from: CpuState, to: CpuState): CpuState => {
  const image = new Uint8Array(PAGE_SIZE);
  VMSA.sevFeatures.set(image, SEV_FEATURE.DEBUG_SWAP);
  storeSaveArea(from, image);
  if (!loadSaveArea(to, image)) throw new Error('registers that a CPU has held cannot be loaded again');
  return to;
};

/** From here on the registers that KVM sees are a copy of what it knew last; the guest's are in the save area. */
export const protectState = (vcpu: Vcpu): void => {
  toSvm(vcpu).staleState = copyState(vcpu.arch.cpu.state, new CpuState());
};

/** The save area has gone elsewhere: what KVM's registers hold is the stale copy, and nothing of the guest's. */
export const unprotectState = (vcpu: Vcpu): void => {
  const svm = toSvm(vcpu);
  if (svm.staleState === null) return;
  copyState(svm.staleState, vcpu.arch.cpu.state);
  svm.staleState = null;
};

/** `sev_es_sync_vmsa`: the registers as userspace has set them, in the form in which the CPU will load them. */
export const syncSaveArea = (vcpu: Vcpu): Result<Page> => {
  const refuse = (reason: string, field: string): Failure =>
    new Failure('EINVAL', reason, 'sev_es_sync_vmsa', { object: `vcpu ${vcpu.id}`, field });
  const { guestDebug, cpu } = vcpu.arch;
  if (guestDebug.control !== 0) return refuse('GUEST_DEBUG_SET', 'guest_debug');
  if (toSvm(vcpu).guestStateProtected) return refuse('ALREADY_PROTECTED', 'vmsa');
  if (cpu.state.debugRegister(7) !== DR7_RESET) return refuse('DR7_NOT_RESET', 'dr7');
  const { saveArea } = toSvm(vcpu).sevEs;
  if (saveArea === null) throw new Error(`vcpu ${vcpu.id} of an SEV-ES guest has no save area`);
  const image = saveArea.page.frame.viewForWrite(null);
  VMSA.sevFeatures.set(image, toSevInfo(vcpu.vm).vmsaFeatures);
  storeSaveArea(cpu.state, image);
  VMSA.gPat.set(image, PAT_RESET);
  return saveArea.page;
};

/** `__sev_launch_update_vmsa`. */
const updateVmsa = (call: SevCall, vcpu: Vcpu): Failure | null => {
  const page = syncSaveArea(vcpu);
  if (failed(page)) return page;
  call.module.kernel.costs.charge('clflush_page');
  const buffer = new Uint8Array(LAUNCH_UPDATE.size);
  LAUNCH_UPDATE.handle.set(buffer, call.sev.handle);
  LAUNCH_UPDATE.paddr.set(buffer, page.frame.hpa);
  LAUNCH_UPDATE.length.set(buffer, PAGE_SIZE);
  const failure = issue(call, 'LAUNCH_UPDATE_VMSA', buffer, '__sev_launch_update_vmsa');
  if (failure !== null) return failure;
  protectState(vcpu);
  return null;
};

/** KVM_SEV_LAUNCH_UPDATE_VMSA (`sev_launch_update_vmsa`): measures and encrypts the save area of every vCPU. */
export const launchUpdateVmsa: SevHandler = function* launchUpdateVmsa(call) {
  const kernelRef = 'sev_launch_update_vmsa';
  const { module, current, vm } = call;
  if (!isSevEsGuest(vm)) return new Failure('ENOTTY', 'NOT_AN_SEV_ES_GUEST', kernelRef, { object: `vm ${vm.id}` });
  const busy = creationInProgress(vm, kernelRef);
  if (busy !== null) return busy;
  const killed = yield* lockAllVcpus(module, current, vm);
  if (killed !== null) return killed;
  let failure: Failure | null = null;
  for (const vcpu of vm.vcpus) {
    failure = updateVmsa(call, vcpu);
    if (failure !== null) break;
  }
  unlockAllVcpus(current, vm);
  return failure;
};
