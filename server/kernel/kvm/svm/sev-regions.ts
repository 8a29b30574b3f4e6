import { Failure, failed, type Result } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { KMEM_SIZE, kvmallocSize } from '../kmem-sizes.js';
import type { Vm } from '../vm.js';
import { type EncRegion, isMirror, toSevInfo } from './sev-info.js';
import { clflushPages, pinMemory, unpinMemory } from './sev-memory.js';
import { type SevModule, writebackCaches } from './sev-module.js';

/** Of the array of pinned pages. */
const POINTER_BYTES = 8;

const notSev = (vm: Vm, kernelRef: string): Failure =>
  new Failure('ENOTTY', 'NOT_A_SEV_GUEST', kernelRef, { object: `vm ${vm.id}` });

const mirrored = (vm: Vm, kernelRef: string): Failure =>
  new Failure('EINVAL', 'VM_IS_A_MIRROR', kernelRef, { object: `vm ${vm.id}` });

/** KVM_MEMORY_ENCRYPT_REG_REGION (`sev_mem_enc_register_region`). One range may be registered twice: two entries [D]. */
export function* registerRegion(
  module: SevModule,
  current: Task,
  vm: Vm,
  address: bigint,
  size: bigint,
): MightSleep<Result<number>> {
  const kernelRef = 'sev_mem_enc_register_region';
  if (!toSevInfo(vm).active) return notSev(vm, kernelRef);
  if (isMirror(vm)) return mirrored(vm, kernelRef);
  yield* vm.lock.lock(current);
  const memory = pinMemory(module, vm, address, size, true);
  if (!failed(memory)) {
    const charges = [
      vm.kmem.charge('enc_region', kvmallocSize(KMEM_SIZE.enc_region)),
      vm.kmem.charge('enc_region_pages', kvmallocSize(memory.pages.length * POINTER_BYTES)),
    ];
    toSevInfo(vm).regions.push({ address, size, pages: memory.pages, charges });
    // The guest may look at the range with the C-bit set before any line of the host is written back.
    clflushPages(module, memory.pages);
  }
  vm.lock.unlock(current);
  return failed(memory) ? memory : 0;
}

/** KVM_MEMORY_ENCRYPT_UNREG_REGION (`sev_mem_enc_unregister_region`): exactly a range that was registered. */
export function* unregisterRegion(
  module: SevModule,
  current: Task,
  vm: Vm,
  address: bigint,
  size: bigint,
): MightSleep<Result<number>> {
  const kernelRef = 'sev_mem_enc_unregister_region';
  if (isMirror(vm)) return mirrored(vm, kernelRef);
  yield* vm.lock.lock(current);
  const result = unregisterLocked(module, vm, address, size);
  vm.lock.unlock(current);
  return result;
}

const unregisterLocked = (module: SevModule, vm: Vm, address: bigint, size: bigint): Result<number> => {
  const kernelRef = 'sev_mem_enc_unregister_region';
  const sev = toSevInfo(vm);
  if (!sev.active) return notSev(vm, kernelRef);
  const index = sev.regions.findIndex((region) => region.address === address && region.size === size);
  const region = sev.regions[index];
  if (region === undefined) {
    const details = { addr: `0x${address.toString(16)}`, size: String(size), registered: String(sev.regions.length) };
    return new Failure('EINVAL', 'REGION_NOT_REGISTERED', kernelRef, details);
  }
  writebackCaches(module, vm);
  sev.regions.splice(index, 1);
  freeRegion(module, vm, region);
  return 0;
};

/** `__unregister_enc_region_locked`. */
export const freeRegion = (module: SevModule, vm: Vm, region: EncRegion): void => {
  unpinMemory(module, vm, region.pages);
  for (const charge of region.charges) charge.release();
};
