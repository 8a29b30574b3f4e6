import { dismantleVm, dismantleVmLocked } from '../../server/kernel/kvm/dismantle.js';
import { isMemoryEncryptionCall } from '../../server/kernel/kvm/post-move/memory-encryption-calls.js';
import { type GatedCall, type PostMovePolicy, type PostMovePolicyName, RUN } from '../../server/kernel/kvm/post-move/policy.js';
import { deadMoved, refuse, requestVmDead } from '../../server/kernel/kvm/post-move/refusal.js';
import { IOCTL } from '../../server/kernel/uapi/ioctls.js';

/** A policy with one rule broken. The rule is named as in `policy-rules.ts`. */
export interface PolicyMutant {
  readonly rule: string;
  mutate(real: PostMovePolicy): PostMovePolicy;
}

type Match = (call: GatedCall) => boolean;

const on =
  (scope: GatedCall['scope'], ...requests: number[]): Match =>
  (call) =>
    call.scope === scope && requests.includes(call.request);

/** Lets a call pass that the policy refuses (or answers). */
const admitting = (rule: string, match: Match): PolicyMutant => ({
  rule,
  mutate: (real) => ({ ...real, admit: (vm, call) => (match(call) ? RUN : real.admit(vm, call)) }),
});

/** Refuses a call that the policy lets pass (or answers). */
const refusing = (rule: string, match: Match): PolicyMutant => ({
  rule,
  mutate: (real) => ({ ...real, admit: (vm, call) => (match(call) ? refuse(vm, call) : real.admit(vm, call)) }),
});

/** Changes what else a policy does. */
const changing = (rule: string, change: Partial<PostMovePolicy>): PolicyMutant => ({
  rule,
  mutate: (real) => ({ ...real, ...change }),
});

const raisesRequests: Partial<PostMovePolicy> = {
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
};
const raisesNoRequest: Partial<PostMovePolicy> = { onMove: () => null };
const dismantlesOnMove: Partial<PostMovePolicy> = {
  onMove: (current, source) => {
    requestVmDead(source);
    return dismantleVmLocked(current, source);
  },
};
const testsVcpusUnderTheirMutex: Partial<PostMovePolicy> = { admitVcpuLocked: ({ vm }) => deadMoved(vm, 'mutant') };
const testsCreationUnderTheLock: Partial<PostMovePolicy> = { admitCreateVcpuLocked: (vm) => deadMoved(vm, 'mutant') };

const EVERY_VM_IOCTL = 'every VM ioctl is EIO, with whatever number and argument';
const WAITED_RUN = 'a KVM_RUN that waited for its mutex returns EIO';
const IRQFDS_STAY = 'irqfds stay: their eventfds still belong to the zombie';

/** Of the rules that VM_DEAD and the dismantling policies share. */
const notEio: readonly PolicyMutant[] = [
  admitting('every vCPU ioctl is EIO', on('vcpu', IOCTL.KVM_GET_REGS)),
  admitting('every device ioctl is EIO', on('device', IOCTL.KVM_HAS_DEVICE_ATTR)),
  changing('other calls that were past the gate go on', testsVcpusUnderTheirMutex),
  changing('other calls that were past the gate go on', testsCreationUnderTheLock),
];
const requestNotRaised = changing(WAITED_RUN, raisesNoRequest);
const vmIoctlAdmitted = admitting(EVERY_VM_IOCTL, on('vm', IOCTL.KVM_CHECK_EXTENSION));

const releasesIrqfds: PolicyMutant = {
  rule: IRQFDS_STAY,
  mutate: (real) => ({
    ...real,
    afterMove: (source) => {
      real.afterMove(source);
      source.get();
      source.kernel.work('mutant', function* releasing(current) {
        yield* source.irqfds.release();
        yield* source.put(current);
      });
    },
  }),
};

export const POLICY_MUTANTS: Readonly<Record<PostMovePolicyName, readonly PolicyMutant[]>> = {
  VM_DEAD: [
    vmIoctlAdmitted,
    requestNotRaised,
    ...notEio,
    changing('nothing is freed until the fds are closed', dismantlesOnMove),
  ],

  NOT_DEAD: [
    refusing('no VM ioctl is refused', on('vm', IOCTL.KVM_GET_DIRTY_LOG)),
    refusing('no vCPU ioctl is refused', on('vcpu', IOCTL.KVM_SET_REGS)),
    refusing('no device ioctl is refused', (call) => call.scope === 'device'),
    refusing('memory-encryption calls find a VM that is no SEV guest', isMemoryEncryptionCall),
    refusing('an old vCPU gets as far as VMRUN, which fails', on('vcpu', IOCTL.KVM_RUN)),
    changing('an old vCPU gets as far as VMRUN, which fails', raisesRequests),
    changing('a vCPU made after the move enters', testsCreationUnderTheLock),
    refusing('the context can move back', on('vm', IOCTL.KVM_ENABLE_CAP)),
    refusing('a teardown works', on('vm', IOCTL.KVM_IOEVENTFD)),
  ],

  ENC_DEAD: [
    admitting('KVM_MEMORY_ENCRYPT_OP is EIO', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_OP)),
    admitting('REG_REGION is EIO', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION)),
    admitting('UNREG_REGION is EIO', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION)),
    admitting('KVM_MEMORY_ENCRYPT_OP on a vCPU is EIO', on('vcpu', IOCTL.KVM_MEMORY_ENCRYPT_OP)),
    admitting('a move into it is EIO', on('vm', IOCTL.KVM_ENABLE_CAP)),
    admitting('a copy into it is EIO', on('vm', IOCTL.KVM_ENABLE_CAP)),
    refusing('other capabilities can be enabled', on('vm', IOCTL.KVM_ENABLE_CAP)),
    refusing('every other VM ioctl runs', on('vm', IOCTL.KVM_SET_USER_MEMORY_REGION)),
    refusing('every other vCPU ioctl runs', on('vcpu', IOCTL.KVM_GET_SREGS)),
    changing('an old vCPU gets as far as VMRUN, which fails', raisesRequests),
    changing('a vCPU made after the move enters', testsCreationUnderTheLock),
  ],

  VM_MOVED: [
    refusing('CHECK_EXTENSION passes', on('vm', IOCTL.KVM_CHECK_EXTENSION)),
    refusing('a memslot can be deleted', on('vm', IOCTL.KVM_SET_USER_MEMORY_REGION)),
    refusing('a memslot can be deleted by the newer form', on('vm', IOCTL.KVM_SET_USER_MEMORY_REGION2)),
    admitting('no memslot can be added', on('vm', IOCTL.KVM_SET_USER_MEMORY_REGION)),
    refusing('an ioeventfd can be deassigned', on('vm', IOCTL.KVM_IOEVENTFD)),
    admitting('no ioeventfd can be assigned', on('vm', IOCTL.KVM_IOEVENTFD)),
    refusing('an irqfd can be deassigned', on('vm', IOCTL.KVM_IRQFD)),
    admitting('no irqfd can be assigned', on('vm', IOCTL.KVM_IRQFD)),
    refusing('SET_GSI_ROUTING passes', on('vm', IOCTL.KVM_SET_GSI_ROUTING)),
    refusing('coalesced MMIO can be unregistered', on('vm', IOCTL.KVM_UNREGISTER_COALESCED_MMIO)),
    refusing('UNREG_REGION passes, and finds no SEV guest', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION)),
    refusing('GET_DIRTY_LOG passes', on('vm', IOCTL.KVM_GET_DIRTY_LOG)),
    refusing('a stats fd can be had', on('vm', IOCTL.KVM_GET_STATS_FD)),
    admitting('what is on no list is EIO', on('vm', IOCTL.KVM_CLEAR_DIRTY_LOG)),
    admitting('memory-encryption commands are EIO', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_OP)),
    admitting('memory-encryption commands are EIO', on('vm', IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION)),
    admitting('a move into it is EIO', on('vm', IOCTL.KVM_ENABLE_CAP)),
    admitting('no vCPU can be created', on('vm', IOCTL.KVM_CREATE_VCPU)),
    refusing('vCPU ioctls that read pass', on('vcpu', IOCTL.KVM_GET_REGS)),
    admitting('vCPU ioctls that write are EIO', on('vcpu', IOCTL.KVM_SET_REGS)),
    admitting('KVM_RUN is EIO, also where it waited for its mutex', on('vcpu', IOCTL.KVM_RUN)),
    changing('KVM_RUN is EIO, also where it waited for its mutex', raisesNoRequest),
    refusing('a device file can be detached', (call) => call.scope === 'device'),
    admitting('no device file can be attached', (call) => call.scope === 'device'),
  ],

  DISMANTLE_IOCTL: [
    refusing('KVM_DISMANTLE_VM frees buses, memslots and page tables', on('vm', IOCTL.KVM_DISMANTLE_VM)),
    changing('KVM_DISMANTLE_VM can be repeated', { offersDismantle: false }),
    admitting('every other VM ioctl is EIO', on('vm', IOCTL.KVM_CHECK_EXTENSION)),
    requestNotRaised,
    ...notEio,
    changing('the move itself frees nothing', dismantlesOnMove),
    releasesIrqfds,
  ],

  DISMANTLE_ON_MOVE: [
    changing('when the move returns, buses, memslots and page tables are gone', {
      ...raisesRequests,
      afterMove: (source) => {
        source.get();
        source.kernel.work('mutant', function* later(current) {
          yield { kind: 'resched' };
          yield* dismantleVm(current, source);
          yield* source.put(current);
        });
      },
    }),
    changing('the teardown’s waits are part of the blackout', raisesRequests),
    changing(WAITED_RUN, { onMove: (current, source) => dismantleVmLocked(current, source) }),
    vmIoctlAdmitted,
    ...notEio,
    releasesIrqfds,
  ],

  DISMANTLE_ASYNC: [
    changing('the move itself dismantles nothing', dismantlesOnMove),
    changing('a worker frees buses, memslots and page tables afterwards', { afterMove: () => {} }),
    changing('the worker holds a reference on the VM', {
      afterMove: (source) =>
        source.kernel.work('mutant', function* dismantle(current) {
          yield { kind: 'resched' };
          yield* dismantleVm(current, source);
        }),
    }),
    requestNotRaised,
    vmIoctlAdmitted,
    ...notEio,
    releasesIrqfds,
  ],

  SUCCEED_SILENTLY: [
    refusing('every VM ioctl returns 0, KVM_CREATE_VCPU among them', on('vm', IOCTL.KVM_CREATE_VCPU)),
    admitting('every VM ioctl returns 0, KVM_CREATE_VCPU among them', on('vm', IOCTL.KVM_CHECK_EXTENSION)),
    admitting('every vCPU ioctl returns 0, with the old exit_reason', on('vcpu', IOCTL.KVM_RUN)),
    admitting('every device ioctl returns 0', (call) => call.scope === 'device'),
    admitting('nothing is done', on('vm', IOCTL.KVM_SET_USER_MEMORY_REGION)),
    admitting('nothing is written to the caller’s memory', on('vcpu', IOCTL.KVM_GET_REGS)),
    requestNotRaised,
    changing('nothing is freed until the fds are closed', dismantlesOnMove),
  ],

  BUGGED_ONLY: [
    refusing('no VM ioctl is refused', on('vm', IOCTL.KVM_IRQFD)),
    refusing('no vCPU ioctl but KVM_RUN is refused', on('vcpu', IOCTL.KVM_GET_REGS)),
    changing('a vCPU that existed at the move never enters again', raisesRequests),
    changing('a vCPU made after the move enters', testsVcpusUnderTheirMutex),
    refusing('a move back succeeds, and strands the guest', on('vm', IOCTL.KVM_ENABLE_CAP)),
    changing('a move back succeeds, and strands the guest', raisesNoRequest),
    refusing('memory-encryption calls find a VM that is no SEV guest', isMemoryEncryptionCall),
  ],

  VCPU_DEAD: [
    refusing('no VM ioctl but KVM_CREATE_VCPU is refused', on('vm', IOCTL.KVM_SET_GSI_ROUTING)),
    refusing('no device ioctl is refused', (call) => call.scope === 'device'),
    {
      // Tested at the gate, where a creation that waits for the lock has already passed.
      rule: 'KVM_CREATE_VCPU is EIO, also where it waited for kvm->lock',
      mutate: (real) => ({
        ...refusing('', on('vm', IOCTL.KVM_CREATE_VCPU)).mutate(real),
        admitCreateVcpuLocked: () => null,
      }),
    },
    {
      rule: 'every vCPU ioctl is EIO, also where it waited for the mutex',
      mutate: (real) => ({ ...refusing('', (call) => call.scope === 'vcpu').mutate(real), admitVcpuLocked: () => null }),
    },
    refusing('memory-encryption calls find a VM that is no SEV guest', isMemoryEncryptionCall),
    refusing('a move back succeeds, and strands the guest', on('vm', IOCTL.KVM_ENABLE_CAP)),
  ],
};
