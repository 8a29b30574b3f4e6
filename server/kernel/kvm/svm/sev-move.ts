import { PAGE_SIZE } from '../../../hardware/units.js';
import type { MiscCgroup } from '../../cgroup/misc.js';
import { Failure, failed, type Result } from '../../failure.js';
import { LazySet } from '../../lazy-set.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { MovePhase } from '../move-phase.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';
import type { MoveOptions } from '../x86/ops.js';
import { miscResource } from './asid.js';
import { isSevEsGuest, isSevSnpGuest, NO_ASID, NO_HANDLE, type RunCpuMask, type SevInfo, toSevInfo } from './sev-info.js';
import { allocateRunCpuMask } from './sev-init.js';
import type { SevModule } from './sev-module.js';
import { creationInProgress, initSevVmcb, lockAllVcpus, protectState, unlockAllVcpus, unprotectState } from './sev-vcpu.js';
import { namedSource } from './source-vm.js';
import { checkTwoVms, type TwoVmLock } from './two-vm-lock.js';
import { freshSevEsState, toSvm } from './vcpu-svm.js';

const KERNEL_REF = 'sev_vm_move_enc_context_from';

/** One move, from the moment at which both VMs are known. */
interface Move {
  readonly module: SevModule;
  readonly current: Task;
  readonly destination: Vm;
  readonly source: Vm;
  readonly report: (phase: MovePhase) => void;
}

type Pair = Pick<Move, 'module' | 'destination' | 'source'>;

const invalid = (reason: string, details: Record<string, string>): Failure => new Failure('EINVAL', reason, KERNEL_REF, details);

/** Step 4 of `sev_vm_move_enc_context_from`: what the two VMs are. */
const checkContexts = ({ module, destination, source }: Pair): Failure | null => {
  if (source.type !== destination.type)
    return invalid('VM_TYPE_MISMATCH', { source: String(source.type), destination: String(destination.type) });
  if (toSevInfo(destination).active) return invalid('DESTINATION_IS_SEV_GUEST', { object: `vm ${destination.id}` });
  if (!toSevInfo(source).active) return invalid('SOURCE_NOT_SEV_GUEST', { object: `vm ${source.id}` });
  if (isSevSnpGuest(source) && module.kernel.config.snpMove === 'refuse')
    return invalid('SNP_MOVE_UNSUPPORTED', { object: `vm ${source.id}` });
  return null;
};

/** `sev_check_source_vcpus`, and the test for vCPUs that are just being created on either side. */
const checkVcpus = ({ destination, source }: Pair): Failure | null => {
  const busy = creationInProgress(source, 'sev_check_source_vcpus') ?? creationInProgress(destination, 'sev_check_source_vcpus');
  if (busy !== null) return busy;
  if (!isSevEsGuest(source)) return null;
  if (source.vcpus.length !== destination.vcpus.length)
    return invalid('VCPU_COUNT_MISMATCH', {
      source: String(source.vcpus.length),
      destination: String(destination.vcpus.length),
    });
  const plain = source.vcpus.find((vcpu) => !toSvm(vcpu).guestStateProtected);
  return plain === undefined ? null : invalid('VMSA_NOT_ENCRYPTED', { object: `vcpu ${plain.id} of vm ${source.id}` });
};

/**
 * The class of ASID that is charged when a move crosses cgroups. Upstream looks at a VM whose `es_active` is not set, and
 * so charges the class of plain SEV also for SEV-ES guests [D].
 */
const chargedResource = ({ module }: Pair, sev: SevInfo) =>
  miscResource(sev.esActive && !module.kernel.config.knownUpstreamDefects);

/** The cgroup charge of the destination. */
interface CgroupCharge {
  readonly group: MiscCgroup;
  /** The group that paid until now; null if it is the same. */
  readonly previous: MiscCgroup | null;
}

/** Step 5: the caller's group pays from now on. EBUSY when it may have no more ASIDs. */
const chargeCgroup = (move: Move): Result<CgroupCharge> => {
  const { module, current, source } = move;
  const sev = toSevInfo(source);
  const group = module.kernel.miscCgroups.of(current.process);
  if (group === sev.miscCg || sev.miscCg === null) return { group, previous: null };
  return group.tryCharge(chargedResource(move, sev)) ?? { group, previous: sev.miscCg };
};

/** `sev_migrate_from`, the VM's part: cannot fail. */
const transferVm = ({ module, destination, source }: Move, mask: RunCpuMask, { group }: CgroupCharge): void => {
  const from = toSevInfo(source);
  const to = toSevInfo(destination);
  to.active = true;
  to.asid = from.asid;
  to.handle = from.handle;
  to.pagesLocked = from.pagesLocked;
  to.encContextOwner = from.encContextOwner;
  to.esActive = from.esActive;
  to.vmsaFeatures = from.vmsaFeatures;
  to.haveRunCpus = mask;
  to.miscCg = group;
  to.regions = from.regions.splice(0);
  for (const { charges } of to.regions) for (const charge of charges) charge.moveTo(destination.kmem);

  from.active = false;
  from.asid = NO_ASID;
  from.handle = NO_HANDLE;
  from.pagesLocked = 0;
  from.encContextOwner = null;
  from.esActive = false;
  from.miscCg = null;
  // Upstream forgets the source's mask, which is never freed; and the destination's starts empty.
  if (!module.kernel.config.knownUpstreamDefects) {
    for (const cpu of from.haveRunCpus?.cpus ?? []) mask.cpus.add(cpu);
    from.haveRunCpus?.charge.release();
  }
  from.haveRunCpus = null;
};

/** Mirrors follow their owner; a mirror that moves takes its place in the owner's list, and the reference on it. */
function* transferMirrors({ current, destination, source }: Move): MightSleep<void> {
  const from = toSevInfo(source);
  const to = toSevInfo(destination);
  to.mirrorVms = from.mirrorVms;
  from.mirrorVms = new LazySet();
  for (const mirror of to.mirrorVms) {
    toSevInfo(mirror).encContextOwner = destination.get();
    yield* source.put(current);
  }
  if (to.encContextOwner === null) return;
  const siblings = toSevInfo(to.encContextOwner).mirrorVms;
  siblings.delete(source);
  siblings.add(destination);
}

/** The vCPUs' part: by index, and for SEV-ES with everything that the save area and the GHCB are. */
const transferVcpus = ({ destination, source, report }: Move): void => {
  for (const [index, vcpu] of destination.vcpus.entries()) {
    const old = source.vcpus[index];
    const es = isSevEsGuest(destination) && old !== undefined;
    if (es) transferSaveArea(vcpu, old);
    initSevVmcb(vcpu);
    report({ kind: 'vcpu', index, saveAreaBytes: es ? PAGE_SIZE : 0 });
  }
};

const transferSaveArea = (vcpu: Vcpu, old: Vcpu): void => {
  const to = toSvm(vcpu);
  const from = toSvm(old);
  to.sevEs = from.sevEs;
  to.sevEs.saveArea?.charge.moveTo(vcpu.vm.kmem);
  to.vmcb.ghcb = from.vmcb.ghcb;
  to.vmcb.vmsa = from.vmcb.vmsa;
  protectState(vcpu);
  // The old vCPU's VMCB keeps asking for SEV-ES, and has nothing any more to do it with.
  from.sevEs = freshSevEsState();
  from.vmcb.ghcb = null;
  from.vmcb.vmsa = null;
  unprotectState(old);
};

/** Steps 8 to 11, with both VMs and all their vCPUs locked. */
function* moveLocked(move: Move, charge: CgroupCharge): MightSleep<Failure | null> {
  const { module, current, destination, source, report } = move;
  const refused = checkVcpus(move);
  if (refused !== null) return refused;
  const mask = allocateRunCpuMask({ module, vm: destination });
  report({ kind: 'checked' });

  const { sanitizer } = module.kernel;
  sanitizer.carried.moving(source, destination, (vcpu) => toSvm(vcpu).guestStateProtected);
  sanitizer.interrupts.moving(source, destination);
  transferVm(move, mask, charge);
  yield* transferMirrors(move);
  sanitizer.contexts.moved(source, destination);
  const { asid, handle, regions, mirrorVms } = toSevInfo(destination);
  const pinnedBytes = regions.reduce((sum, { pages }) => sum + pages.length * PAGE_SIZE, 0);
  report({ kind: 'vm-state', asid, handle, regions: regions.length, pinnedBytes, mirrors: mirrorVms.size });
  transferVcpus(move);
  sanitizer.contexts.verify(module.kernel.vms.values());

  const policy = source.postMovePolicy;
  // A VM that is dead for another reason stays so: that flag is never cleared.
  if (source.life.kind !== 'dead')
    source.life = {
      kind: 'moved',
      cause: { kind: 'moved', toVm: destination.id, byPid: current.process.pid },
      policy,
    };
  const work = policy.onMove(current, source);
  if (work !== null) yield* work;
  report({ kind: 'policy', policy: policy.name });
  return null;
}

/** Steps 4 to 13, with both kvm->locks held. */
function* moveBetweenLockedVms(move: Move): MightSleep<Failure | null> {
  const { module, current, destination, source, report } = move;
  report({ kind: 'vms-locked', source: source.id, destination: destination.id });
  const refused = checkContexts(move);
  if (refused !== null) return refused;
  const resource = chargedResource(move, toSevInfo(source));
  const charge = chargeCgroup(move);
  if (failed(charge)) return charge;
  const failure = yield* withVcpusLocked(module, current, destination, source, function* locked() {
    report({ kind: 'vcpus-locked', source: source.vcpus.length, destination: destination.vcpus.length });
    return yield* moveLocked(move, charge);
  });
  if (charge.previous !== null) (failure === null ? charge.previous : charge.group).uncharge(resource);
  return failure;
}

/** Step 6 and 12: every vCPU of the destination, then of the source. EINTR, with none held. */
function* withVcpusLocked(
  module: SevModule,
  current: Task,
  destination: Vm,
  source: Vm,
  body: () => MightSleep<Failure | null>,
): MightSleep<Failure | null> {
  const killed = yield* lockAllVcpus(module, current, destination);
  if (killed !== null) return killed;
  const killedLater = yield* lockAllVcpus(module, current, source);
  if (killedLater !== null) {
    unlockAllVcpus(current, destination);
    return killedLater;
  }
  const failure = yield* body();
  unlockAllVcpus(current, source);
  unlockAllVcpus(current, destination);
  return failure;
}

/**
 * `sev_vm_move_enc_context_from` (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM): takes the encryption context of the VM behind
 * `sourceFd` over into `destination`, which must be no SEV guest. Checks, locks and rollback in the real order: until the
 * transfer begins, a failure leaves both VMs as they were. What the source is afterwards its post-move policy says.
 * @param locks how the two VMs are locked; the kernel has one way (`sevTwoVmLock`)
 */
export function* moveEncContext(
  module: SevModule,
  locks: TwoVmLock,
  current: Task,
  destination: Vm,
  sourceFd: number,
  { observer }: MoveOptions = {},
): MightSleep<Result<number>> {
  const named = namedSource(current, sourceFd, KERNEL_REF);
  if (failed(named)) return named;
  const { vm: source } = named;
  const file = named.file.get();
  const report = observer ?? (() => {});
  const refused = yield* locks.lock(current, destination, source);
  if (refused !== null) {
    yield* file.put(current);
    return refused;
  }
  const failure = yield* moveBetweenLockedVms({ module, current, destination, source, report });
  locks.unlock(current, destination, source);
  if (failure === null) {
    source.postMovePolicy.afterMove(source);
    report({ kind: 'done' });
  }
  yield* file.put(current);
  return failure ?? 0;
}

/**
 * Whether a move would be allowed at this moment: the failure that it would meet, in the same order of checks. Takes no
 * lock and no charge; that the move would wait for a vCPU in KVM_RUN it does not say.
 */
export const validateMove = (module: SevModule, current: Task, destination: Vm, sourceFd: number): Failure | null => {
  const named = namedSource(current, sourceFd, KERNEL_REF);
  if (failed(named)) return named;
  const pair: Pair = { module, destination, source: named.vm };
  return checkTwoVms(destination, named.vm) ?? checkContexts(pair) ?? checkCgroup(pair, current) ?? checkVcpus(pair);
};

const checkCgroup = (pair: Pair, current: Task): Failure | null => {
  const sev = toSevInfo(pair.source);
  const group = pair.module.kernel.miscCgroups.of(current.process);
  return group === sev.miscCg || sev.miscCg === null ? null : group.whyRefused(chargedResource(pair, sev));
};
