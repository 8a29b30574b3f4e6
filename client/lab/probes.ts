import { Register } from 'iced-x86';
import {
  KvmError,
  KvmMpStateValue,
  KvmX86VmType,
  type Outcome,
  type PostMovePolicyName,
  SevPolicyBit,
  type SimKvm,
  type Vcpu,
  Vm,
  type VmInfo,
  validateMove,
} from '../index.js';
import { Assembler } from './guest/assembler.js';
import { GPA, HIGH_MEMORY, SERIAL_PORT } from './guest/layout.js';
import { sevGuest } from './guest/sev-guest.js';
import { type FindingCount, startCollecting } from './measure.js';
import { Scenario, type ScenarioOptions } from './scenario.js';
import { unplug } from './teardown.js';
import { restoreState, saveState } from './vmm/carried-state.js';
import type { Encryption, Vmm } from './vmm/vmm.js';

/** When a probe is made: as soon as the guest runs at the destination, or after the source has unplugged its device too. */
export const PROBE_TIMES = ['after-move', 'after-unplug'] as const;
export type ProbeTime = (typeof PROBE_TIMES)[number];

/** What one call of a probe came to: `0`, an errno, or an exit. */
export interface ProbeCall {
  readonly call: string;
  readonly outcome: string;
}

/** A probe on a fresh copy of the scenario. */
export interface ProbeResult {
  readonly probe: string;
  readonly encryption: Encryption;
  readonly policy: PostMovePolicyName;
  readonly when: ProbeTime;
  readonly calls: readonly ProbeCall[];
  /** Whether the guest still takes every completion, wherever it is supposed to run. */
  readonly guestAnswers: boolean;
  readonly findings: readonly FindingCount[];
}

/** What a probe works with. */
interface Zombie {
  readonly scenario: Scenario;
  readonly source: Vmm;
  readonly destination: Vmm;
  /** Makes a call and notes what it came to. */
  readonly note: <T>(call: string, outcome: Promise<Outcome<T>>, describe?: (value: T) => string) => Promise<T | null>;
}

interface Probe {
  readonly name: string;
  /** Calls that are to be waiting for their lock when the move comes; the guest runs meanwhile. */
  readonly duringMove?: (zombie: Zombie) => Promise<unknown>;
  /** Calls that are made later. */
  readonly run?: (zombie: Zombie) => Promise<void>;
}

const SIGUSR1 = 10;
const PROBE_TID = 2000;
/** Longest that a vCPU of a zombie may execute whatever it finds, in milliseconds. */
const RUN_MS = 100;
/** Milliseconds after which a call that has been sent waits for its lock. */
const GET_IN_LINE_MS = 25;
/** A vCPU of a zombie is halted, as an idle guest is: its VMM makes it go on. */
const RUNNABLE = { mp_state: KvmMpStateValue.KVM_MP_STATE_RUNNABLE } as const;
const NEW_VCPU = 7;
const PATIENCE_MS = 10_000;
const NEW_SLOT = 9;

/** KVM_RUN that is interrupted if it does not come back by itself. */
const runFor = async ({ process }: Vmm, vcpu: Vcpu, milliseconds = RUN_MS) => {
  const timer = setTimeout(() => void process.try.signal(SIGUSR1, { tid: PROBE_TID }), milliseconds);
  const outcome = await vcpu.with({ thread: PROBE_TID }).try.run({ immediate_exit: 0 });
  clearTimeout(timer);
  return outcome;
};

/** Code that a host puts beside the guest: stores to a page of the guest's, then says so on the serial port. */
const intruder = (address: number): Uint8Array => {
  const a = new Assembler(32);
  a.movImm(Register.EDI, GPA.COUNTS).movImm(Register.EAX, 0x0bad_0bad).store32(Register.EDI, 0, Register.EAX);
  return a.movImm(Register.EDX, SERIAL_PORT).outDxAl().hlt().encode(address);
};

/**
 * A vCPU that is made after the move has a plain VMCB: it can be given any code, and sees the guest's memory as the host does.
 */
const createAndRun = async ({ source, note }: Zombie): Promise<void> => {
  const { vm, memory, process } = source;
  const vcpu = await note('KVM_CREATE_VCPU', vm.try.createVcpu(NEW_VCPU), ({ fd }) => `fd ${fd}`);
  if (vcpu === null) return;
  const sregs = await note('KVM_GET_SREGS', vcpu.try.getSregs());
  const start = sregs === null ? undefined : sevGuest().start?.(0, sregs);
  if (start === undefined) return;
  await process.memory.write(memory.userspaceAddress(BigInt(HIGH_MEMORY)), intruder(HIGH_MEMORY));
  await note('KVM_SET_SREGS', vcpu.try.setSregs(start.sregs));
  await note('KVM_SET_REGS', vcpu.try.setRegs({ rip: BigInt(HIGH_MEMORY), rflags: 2n }));
  await note('KVM_SET_MP_STATE', vcpu.try.setMpState(RUNNABLE));
  await note('KVM_RUN', runFor(source, vcpu), ({ reason }) => reason);
};

/** The context goes back to where it came from, with everything that a VMM would carry, and the guest is to go on there. */
const moveBack = async ({ scenario, source, destination, note }: Zombie): Promise<void> => {
  await destination.stop();
  const state = await saveState(destination, scenario.options.encryption);
  const fd = await destination.process.sendFd(destination.vm, source.process);
  const owner = source.process.adopt(Vm, fd);
  const moved = await note('KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM', source.vm.try.moveEncContextFrom(owner));
  await owner.close();
  if (moved === null) return destination.start();
  // What answers 0 and has done nothing looks like success to a VMM.
  const restored = await restoreState(source, state).then(
    () => '0',
    (error: unknown) => KvmError.from(error).errno ?? KvmError.from(error).reason,
  );
  await note('restore the state', Promise.resolve({ errno: null, value: restored, error: null }), (outcome) => outcome);
  scenario.returnToSource();
};

const CALLS = {
  moveEncContextFrom: 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM',
  copyEncContextFrom: 'KVM_CAP_VM_COPY_ENC_CONTEXT_FROM',
} as const;

/** A third VM wants the zombie's context. */
const useAsSource = async ({ scenario, destination, note }: Zombie): Promise<void> => {
  const zombie = await scenario.sendSource(destination);
  for (const call of ['moveEncContextFrom', 'copyEncContextFrom'] as const) {
    const third = await destination.kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
    await note(CALLS[call], third.try[call](zombie));
    await third.close();
  }
  await zombie.close();
};

const reachableBytes = ({ kmem }: VmInfo): string => String(kmem.reduce((sum, { reachable_bytes }) => sum + reachable_bytes, 0n));

const PROBES: readonly Probe[] = [
  {
    name: 'run an old vCPU',
    run: async ({ source, note }) => {
      await note('KVM_SET_MP_STATE', source.bootVcpu.try.setMpState(RUNNABLE));
      await note('KVM_RUN', runFor(source, source.bootVcpu), ({ reason }) => reason);
    },
  },
  { name: 'create a vCPU and run it', run: createAndRun },
  {
    name: 'read registers',
    run: async ({ source, note }) => {
      await note('KVM_GET_REGS', source.bootVcpu.try.getRegs());
    },
  },
  {
    name: 'call for memory encryption',
    run: async ({ source, note }) => {
      await note('KVM_SEV_GUEST_STATUS', source.vm.sev.try.guestStatus());
    },
  },
  {
    name: 'unregister a region',
    run: async ({ source, destination, note }) => {
      const [slot] = source.memory.slots;
      if (slot === undefined) return;
      const region = { addr: source.memory.userspaceAddress(slot.gpa), size: slot.size };
      await note('source: KVM_MEMORY_ENCRYPT_UNREG_REGION', source.vm.try.memoryEncryptUnregRegion(region));
      await note(
        'destination, its own address',
        destination.vm.try.memoryEncryptUnregRegion({ ...region, addr: destination.memory.userspaceAddress(slot.gpa) }),
      );
      await note('destination, the source\u2019s address', destination.vm.try.memoryEncryptUnregRegion(region));
    },
  },
  {
    name: 'add a memory slot',
    run: async ({ source, note }) => {
      const where = { guest_phys_addr: 0x1_0000_0000n, memory_size: 0x10_0000n, userspace_addr: source.memory.address };
      await note('KVM_SET_USER_MEMORY_REGION', source.vm.try.setUserMemoryRegion({ slot: NEW_SLOT, ...where }));
    },
  },
  {
    name: 'dismantle the zombie',
    run: async ({ source, note }) => {
      await note('bytes held', source.vm.try.inspect(), reachableBytes);
      await note('KVM_DISMANTLE_VM', source.vm.try.dismantleVm());
      await note('bytes held', source.vm.try.inspect(), reachableBytes);
    },
  },
  { name: 'move the context back', run: moveBack },
  { name: 'use the zombie as a source', run: useAsSource },
  {
    name: 'KVM_CREATE_VCPU that waited',
    duringMove: ({ source, note }) => note('KVM_CREATE_VCPU', source.vm.try.createVcpu(NEW_VCPU), ({ fd }) => `fd ${fd}`),
  },
  {
    name: 'KVM_GET_REGS that waited',
    duringMove: ({ source, note }) => note('KVM_GET_REGS', source.bootVcpu.try.getRegs()),
  },
  {
    name: 'KVM_RUN that waited',
    duringMove: ({ source, note }) =>
      Promise.all([
        note('KVM_SET_MP_STATE', source.bootVcpu.try.setMpState(RUNNABLE)),
        note('KVM_RUN', runFor(source, source.bootVcpu, 4 * GET_IN_LINE_MS), ({ reason }) => reason),
      ]),
  },
];

/** Asks again until it is so, for as long as a test would wait. */
const until = async (condition: () => Promise<boolean>): Promise<void> => {
  for (const giveUp = performance.now() + PATIENCE_MS; !(await condition()); )
    if (performance.now() > giveUp) throw new Error('what a probe waits for has not come about');
};

const pauseFor = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

const HOLDER_TID = PROBE_TID + 1;

/**
 * A vCPU halts in KVM_RUN; the move waits for its mutex, with both kvm->locks held; the probe's call gets in line behind it;
 * then the vCPU is interrupted, and the move and the call go on.
 */
const moveWhile = async (zombie: Zombie, policy: PostMovePolicyName, waiting: () => Promise<unknown>): Promise<void> => {
  const { scenario, source, destination } = zombie;
  const holder = source.bootVcpu.with({ thread: HOLDER_TID }).try.run({ immediate_exit: 0 });
  await until(async () => (await source.vm.inspect()).vcpus.some(({ in_run }) => in_run));
  const handle = await scenario.sendSource(destination);
  const move = scenario.move(policy);
  await until(async () => (await validateMove(destination.vm, handle)).errno_name === 'EBUSY');
  await handle.close();
  const call = waiting();
  await pauseFor(GET_IN_LINE_MS);
  await source.process.try.signal(SIGUSR1, { tid: HOLDER_TID });
  await holder;
  await move;
  await call;
};

/** Makes one probe on a guest of its own. */
const runProbe = async (
  simkvm: SimKvm,
  options: ScenarioOptions,
  probe: Probe,
  policy: PostMovePolicyName,
  when: ProbeTime,
): Promise<ProbeResult> => {
  await using scenario = await Scenario.start(simkvm, options);
  const { source } = scenario;
  const destination = await scenario.createDestination();
  const findings = await startCollecting(simkvm.host, [scenario.sourceId, (await destination.vm.inspect()).vm_id]);
  const calls: ProbeCall[] = [];
  const note: Zombie['note'] = async (call, outcome, describe = () => '0') => {
    const answer = await outcome;
    calls.push({ call, outcome: answer.errno ?? describe(answer.value) });
    return answer.errno === null ? answer.value : null;
  };
  const zombie: Zombie = { scenario, source, destination, note };
  const { duringMove } = probe;
  await scenario.pause({ quiet: duringMove !== undefined });
  if (duringMove === undefined) await scenario.move(policy);
  else await moveWhile(zombie, policy, () => duringMove(zombie));
  await scenario.resume();
  if (when === 'after-unplug') await unplug(scenario);
  await probe.run?.(zombie);
  await scenario.complete();
  const guestAnswers = scenario.queues().every(({ signalled, delivered }) => signalled === delivered);
  return { probe: probe.name, encryption: options.encryption, policy, when, calls, guestAnswers, findings: await findings() };
};

/** A zombie without vCPUs is to become a new guest. It takes VMs of its own: the guest of the scenario has vCPUs. */
const secondInit = async (simkvm: SimKvm, { encryption }: ScenarioOptions, policy: PostMovePolicyName): Promise<ProbeResult> => {
  await using process = await simkvm.attach({ name: 'second init' });
  const kvm = await process.openKvm();
  const sev = await process.openSev();
  const [source, destination] = [await kvm.createVm(), await kvm.createVm()];
  const findings = await startCollecting(simkvm.host, [(await source.inspect()).vm_id, (await destination.inspect()).vm_id]);
  const init = () => (encryption === 'SEV' ? source.sev.try.init() : source.sev.try.esInit());
  await init();
  await source.sev.launchStart({ policy: encryption === 'SEV' ? 0 : SevPolicyBit.SEV_POLICY_ES }, sev.fd);
  await source.setPostMovePolicy(policy);
  await destination.moveEncContextFrom(source);
  const { errno } = await init();
  const calls = [{ call: encryption === 'SEV' ? 'KVM_SEV_INIT' : 'KVM_SEV_ES_INIT', outcome: errno ?? '0' }];
  const made = (await source.inspect()).encryption_context !== null;
  calls.push({ call: 'a second guest', outcome: made ? 'made' : 'not made' });
  return {
    ...{ probe: 'second SEV_INIT', encryption, policy, when: 'after-move', calls },
    guestAnswers: (await destination.inspect()).encryption_context !== null,
    findings: await findings(),
  };
};

/** A probe that is still to be made. */
export type PendingProbe = (simkvm: SimKvm) => Promise<ProbeResult>;

/** All probes for one encryption and one policy. */
export const probesOf = (
  options: ScenarioOptions,
  policy: PostMovePolicyName,
  times: readonly ProbeTime[],
): readonly PendingProbe[] => [
  ...PROBES.flatMap((probe) =>
    (probe.duringMove === undefined ? times : times.slice(0, 1)).map(
      (when) => (simkvm: SimKvm) => runProbe(simkvm, options, probe, policy, when),
    ),
  ),
  (simkvm) => secondInit(simkvm, options, policy),
];
