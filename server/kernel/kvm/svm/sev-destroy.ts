import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vm } from '../vm.js';
import { isSevSnpGuest, NO_ASID, NO_HANDLE, toSevInfo } from './sev-info.js';
import { unbindAsid } from './sev-launch.js';
import { type SevModule, writebackCaches } from './sev-module.js';
import { freeRegion } from './sev-regions.js';
import { decommissionContext } from './snp/context.js';
import { freeGuestRequestBuffers } from './snp/guest-request-buffers.js';

/**
 * `sev_vm_destroy`. A VM whose context has moved away is no SEV guest: it ends at the first line, issues no firmware
 * command and frees no ASID. A mirror only leaves its owner.
 */
export function* sevVmDestroy(module: SevModule, current: Task, vm: Vm): MightSleep<void> {
  const sev = toSevInfo(vm);
  if (!sev.active) return;
  const snp = isSevSnpGuest(vm);
  if (sev.mirrorVms.size > 0) throw new Error(`vm ${vm.id} is destroyed while it is mirrored`);
  sev.active = false;
  sev.haveRunCpus?.charge.release();
  const owner = sev.encContextOwner;
  if (owner !== null) {
    sev.haveRunCpus = null;
    yield* owner.lock.lock(current);
    toSevInfo(owner).mirrorVms.delete(vm);
    owner.lock.unlock(current);
    yield* owner.put(current);
    return;
  }
  if (sev.regions.length > 0) writebackCaches(module, vm);
  for (const region of sev.regions.splice(0)) freeRegion(module, vm, region);
  sev.haveRunCpus = null;
  if (snp) {
    freeGuestRequestBuffers(module, sev);
    // The ASID stays bound to a context that cannot be decommissioned: it is leaked.
    if (decommissionContext(module, sev) !== null) return;
  } else unbindAsid(module, sev.handle);
  sev.handle = NO_HANDLE;
  module.kernel.sanitizer.contexts.unbound(vm);
  if (sev.miscCg === null) throw new Error(`vm ${vm.id} has an ASID for which no cgroup pays`);
  module.asids.free(sev.asid, sev.miscCg, sev.esActive);
  sev.miscCg = null;
  sev.asid = NO_ASID;
}
