import { Failure, failed, type Result } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vm } from '../vm.js';
import { isMirror, toSevInfo } from './sev-info.js';
import { allocateRunCpuMask } from './sev-init.js';
import type { SevModule } from './sev-module.js';
import { namedSource } from './source-vm.js';
import type { TwoVmLock } from './two-vm-lock.js';

const KERNEL_REF = 'sev_vm_copy_enc_context_from';

const invalid = (reason: string, vm: Vm): Failure => new Failure('EINVAL', reason, KERNEL_REF, { object: `vm ${vm.id}` });

/** The types of the two VMs are not compared. */
const check = (mirror: Vm, source: Vm): Failure | null => {
  if (toSevInfo(mirror).active) return invalid('DESTINATION_IS_SEV_GUEST', mirror);
  if (!toSevInfo(source).active) return invalid('SOURCE_NOT_SEV_GUEST', source);
  if (isMirror(source)) return invalid('SOURCE_IS_A_MIRROR', source);
  return mirror.createdVcpus > 0 ? invalid('DESTINATION_HAS_VCPUS', mirror) : null;
};

/**
 * `sev_vm_copy_enc_context_from` (KVM_CAP_VM_COPY_ENC_CONTEXT_FROM): `mirror` runs under the source's ASID from now on,
 * and holds a reference on it. The source stays what it was.
 */
export function* copyEncContext(
  module: SevModule,
  locks: TwoVmLock,
  current: Task,
  mirror: Vm,
  sourceFd: number,
): MightSleep<Result<number>> {
  const named = namedSource(current, sourceFd, KERNEL_REF);
  if (failed(named)) return named;
  const { vm: source } = named;
  const file = named.file.get();
  let failure = yield* locks.lock(current, mirror, source);
  if (failure === null) {
    failure = check(mirror, source);
    if (failure === null) attach(module, mirror, source);
    locks.unlock(current, mirror, source);
  }
  yield* file.put(current);
  return failure ?? 0;
}

const attach = (module: SevModule, mirror: Vm, source: Vm): void => {
  const from = toSevInfo(source);
  const to = toSevInfo(mirror);
  to.haveRunCpus = allocateRunCpuMask({ module, vm: mirror });
  to.encContextOwner = source.get();
  from.mirrorVms.add(mirror);
  to.active = true;
  to.asid = from.asid;
  to.fd = from.fd;
  to.handle = from.handle;
  to.esActive = from.esActive;
  to.needInit = false;
};
