import { Metadata } from '@grpc/grpc-js';
import type { Clock } from '../../../server/kernel/clock.js';
import { DEFAULT_HOST_CONFIG } from '../../../server/kernel/config.js';
import { failed, type Result } from '../../../server/kernel/failure.js';
import type { Kernel } from '../../../server/kernel/kernel.js';
import { createHost } from '../../../server/kernel/kvm/host.js';
import type { Task } from '../../../server/kernel/sched/task.js';
import type { MightSleep } from '../../../server/kernel/sched/wait.js';
import { open } from '../../../server/kernel/syscalls/descriptors.js';
import { eventfd } from '../../../server/kernel/syscalls/events.js';
import { ioctl } from '../../../server/kernel/syscalls/ioctl.js';
import { mmap, writeMemory } from '../../../server/kernel/syscalls/memory.js';
import { IOCTL, IOCTLS } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_userspace_memory_region } from '../../../server/kernel/uapi/kvm-structs.js';
import { MAP, PROT } from '../../../server/kernel/uapi/mman.js';
import { KVM_SEV_CMD, kvm_sev_cmd } from '../../../server/kernel/uapi/sev-structs.js';
import { Dispatch } from '../../../server/rpc/dispatch.js';
import { createVolatileMigrationHost } from '../../../server/rpc/migration/migration-host.js';
import { type Holder, ProcessRegistry } from '../../../server/rpc/process-registry.js';
import type { Route } from '../../../server/rpc/route.js';
import { routes } from '../../../server/rpc/server.js';
import { Random } from '../../differential/random.js';
import { type Request, requestFields, withField } from '../../helpers/message-fields.js';
import { fieldValue, type Surroundings, structBytes } from './values.js';

/** One call of the fuzzer: who makes it, through which tier, and the seed of what it is. */
export interface FuzzCall {
  readonly process: number;
  readonly tier: 'typed' | 'raw';
  readonly seed: number;
}

/** What is done to a process's VM before the first call: calls at random seldom get that far. */
type Preparation = 'nothing' | 'irqchip' | 'sev';
const PREPARATIONS: readonly Preparation[] = ['nothing', 'irqchip', 'sev'];
export const PROCESSES = PREPARATIONS.length;
const MEMORY_BYTES = 0x40_0000n;
const GUEST_BYTES = 0x1_0000n;
const STEPS_PER_CALL = 3;
const STEPS_TO_END = 200_000;
const NS_PER_CALL = 1_000_000n;
/** Findings that a fuzzer must never cause; the others are about what callers did to guests. */
const NEVER: ReadonlySet<string> = new Set(['KERNEL_OOPS', 'KMEM_LEAKED', 'FIRMWARE_CONTEXT_LEAKED']);
/** Services whose calls concern the host, not one process. */
const APART: ReadonlySet<string> = new Set(['simkvm.v1.HostService', 'simkvm.v1.MigrationService']);
/** At the beginning of every page of a guest's memory: loads, stores, ports, and again. */
const GUEST_CODE = Uint8Array.from([
  0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xa1, 0, 0, 0xa3, 2, 0, 0xe6, 0x80, 0xe4, 0x80, 0x90, 0xeb, 0xf3, 0xf4,
]);

class SteppedClock implements Clock {
  private time = 0n;

  now(): bigint {
    return this.time;
  }

  step(): void {
    this.time += NS_PER_CALL;
  }
}

interface Actor {
  readonly holder: Holder;
  /** A descriptor of each kind, by the kinds' names in the table of ioctls. */
  readonly fds: Readonly<Record<string, number>>;
  readonly memory: Surroundings['memory'];
}

/** A host in memory, with processes that call whatever the contract and the tables of ioctls have. */
export class FuzzWorld {
  readonly kernel: Kernel;
  private readonly clock = new SteppedClock();
  private readonly registry: ProcessRegistry;
  private readonly dispatch: Dispatch;
  private readonly actors: readonly Actor[];
  private readonly atBoot: readonly string[];

  constructor() {
    this.kernel = createHost(DEFAULT_HOST_CONFIG, { clock: this.clock });
    this.registry = new ProcessRegistry(this.kernel);
    const migration = createVolatileMigrationHost(new Uint8Array(32));
    const host = { kernel: this.kernel, processes: this.registry, version: 'fuzz', bootId: 'fuzz', migration, log: null };
    this.dispatch = new Dispatch(host, () => null);
    this.atBoot = this.leftovers();
    this.actors = PREPARATIONS.map((prepare) => this.createActor(prepare));
  }

  /** Makes one call, and lets the host run for a while. */
  call({ process, tier, seed }: FuzzCall): void {
    const actor = this.actors[process % PROCESSES];
    if (actor === undefined) throw new Error('no such process');
    const random = new Random(seed);
    if (tier === 'typed') this.callTyped(random, actor);
    else this.callRaw(random, actor);
    this.clock.step();
    this.kernel.timers.advance(this.clock.now());
    this.kernel.scheduler.run(STEPS_PER_CALL);
  }

  /** Ends every process. What is left then, and what must never have happened. */
  finish(): string[] {
    const { kernel } = this;
    for (const process of [...kernel.processes.values()]) if (process !== kernel.init) this.registry.end(process, 0);
    for (let left = STEPS_TO_END; left > 0 && kernel.scheduler.run(1); left--) {
      this.clock.step();
      kernel.timers.advance(this.clock.now());
    }
    return this.leftovers().filter((item) => !this.atBoot.includes(item));
  }

  private leftovers(): string[] {
    const { kernel } = this;
    return [
      ...[...kernel.processes.values()].map((process) => `process ${process.pid}`),
      ...[...kernel.vms.values()].map((vm) => `VM ${vm.id} with ${vm.references} references`),
      ...(kernel.dram.used > 0 ? [`${kernel.dram.used} frames of memory`] : []),
      ...[...kernel.kmem.chargedByType].map(([type, bytes]) => `${bytes} bytes of ${type}`),
      ...(kernel.amd?.processor.guests() ?? []).map(({ handle }) => `guest ${handle} of the secure processor`),
      ...kernel.findings.all
        .filter(({ kind }) => NEVER.has(kind))
        .map(({ kind, message, call }) => `${kind}: ${message} (${call})`),
    ];
  }

  /** A process that has memory, and a VM with memory and a vCPU: calls at random seldom get that far. */
  private createActor(prepare: Preparation): Actor {
    const holder = this.registry.create('spawned');
    if (failed(holder)) throw new Error(holder.reason);
    const { process } = holder;
    const { mm } = process;
    if (mm === null) throw new Error('a process without memory');
    const prot = PROT.READ | PROT.WRITE;
    const anonymous = { address: 0n, length: MEMORY_BYTES, prot, flags: MAP.PRIVATE | MAP.ANONYMOUS, fd: -1, offset: 0n };
    const address = this.must(process, (current) => mmap(current, anonymous));
    const kvm = this.must(process, (current) => open(this.kernel, current, '/dev/kvm', 2));
    const call = (fd: number, request: number, value: bigint): number =>
      this.must(process, (current) => ioctl(current, fd, request, { value, user: mm }));
    const vm = call(kvm, IOCTL.KVM_CREATE_VM, 0n);
    const scratch = BigInt(address) + MEMORY_BYTES - 4096n;
    const region = { slot: 0, memory_size: GUEST_BYTES, userspace_addr: BigInt(address) };
    this.run(process, (current) => writeMemory(current, scratch, kvm_userspace_memory_region.encode(region)));
    for (let page = 0n; page < 16n; page++)
      this.run(process, (current) => writeMemory(current, BigInt(address) + page * 4096n, GUEST_CODE));
    call(vm, IOCTL.KVM_SET_USER_MEMORY_REGION, scratch);
    const sev = this.must(process, (current) => open(this.kernel, current, '/dev/sev', 2));
    if (prepare === 'irqchip') call(vm, IOCTL.KVM_CREATE_IRQCHIP, 0n);
    if (prepare === 'sev') {
      this.run(process, (current) => writeMemory(current, scratch, kvm_sev_cmd.encode({ id: KVM_SEV_CMD.INIT, sev_fd: sev })));
      call(vm, IOCTL.KVM_MEMORY_ENCRYPT_OP, scratch);
    }
    const vcpu = call(vm, IOCTL.KVM_CREATE_VCPU, 0n);
    const event = this.must(process, (current) => eventfd(current, 0, 0o4000));
    return { holder, fds: { system: kvm, vm, vcpu, sev, event }, memory: { address: BigInt(address), length: MEMORY_BYTES } };
  }

  private around({ holder, memory, fds }: Actor, kind: string): Surroundings {
    const pids = this.actors.map((actor) => actor.holder.process.pid);
    const openFds = [...holder.process.files.entries()].map(([fd]) => fd);
    return { openFds, likelyFd: fds[kind] ?? openFds.at(-1) ?? 0, memory, pids };
  }

  private callTyped(random: Random, actor: Actor): void {
    const route = random.pick(TYPED);
    if (route.name === 'Exit' && random.chance(0.9)) return;
    const around = this.around(actor, KINDS[route.service] ?? '');
    let request: Request = {};
    for (const field of requestFields(route.definition.path))
      if (random.chance(0.85)) request = withField(request, field.path, fieldValue(random, field, around));
    const metadata = new Metadata();
    metadata.set('simkvm-process', actor.holder.token);
    const call = {
      request: route.definition.requestDeserialize(route.definition.requestSerialize(request)),
      metadata,
      getPeer: () => '127.0.0.1:1',
      on: () => {},
    };
    Reflect.apply(route.serve(this.dispatch), null, [call, () => {}]);
  }

  private callRaw(random: Random, actor: Actor): void {
    const { process } = actor.holder;
    const { mm } = process;
    if (mm === null || process.state.kind !== 'running') return;
    const [name, { request, arg, fds }] = random.pick([...IOCTLS]);
    const around = this.around(actor, random.pick(fds));
    const fd = random.chance(0.9) ? around.likelyFd : random.pick([...around.openFds, 99]);
    const at = actor.memory.address + MEMORY_BYTES - 0x2000n;
    const struct = arg.kind === 'struct' ? arg.struct : null;
    const bytes = struct === null ? new Uint8Array(0) : structBytes(random, struct, around);
    const value = arg.kind === 'struct' && random.chance(0.95) ? at : BigInt(random.below(8));
    this.kernel.scheduler.start(
      process,
      name,
      function* raw(current): MightSleep<Result<number>> {
        writeMemory(current, at, bytes);
        return yield* ioctl(current, fd, request, { value, user: mm });
      },
      () => {},
    );
  }

  /** A call that ends at once. */
  private run<T>(process: Holder['process'], body: (current: Task) => T | MightSleep<T>): T {
    let result: { readonly value: T } | undefined;
    this.kernel.scheduler.start(
      process,
      'set up',
      function* setUp(current): MightSleep<T> {
        const started = body(current);
        return isTask(started) ? yield* started : started;
      },
      (value) => {
        result = { value };
      },
    );
    while (result === undefined && this.kernel.scheduler.run(1));
    if (result === undefined) throw new Error('setting up waits');
    return result.value;
  }

  private must(
    process: Holder['process'],
    body: (current: Task) => Result<number | bigint> | MightSleep<Result<number | bigint>>,
  ): number {
    const result = this.run<Result<number | bigint>>(process, body);
    if (failed(result)) throw new Error(`${result.errno} ${result.reason}`);
    return Number(result);
  }
}

const isTask = <T>(started: T | MightSleep<T>): started is MightSleep<T> =>
  typeof started === 'object' && started !== null && Symbol.iterator in started && 'next' in started;

/** The kind of descriptor that a service's methods are for. */
const KINDS: Readonly<Record<string, string>> = {
  'simkvm.v1.KvmSystem': 'system',
  'simkvm.v1.KvmVm': 'vm',
  'simkvm.v1.KvmVcpu': 'vcpu',
  'simkvm.v1.SevPlatform': 'sev',
  'simkvm.v1.EventFdService': 'event',
};

/** Every unary RPC of a process. */
const TYPED: readonly Route[] = routes().filter(
  ({ service, role, definition }) =>
    !APART.has(service) && role === 'process' && !definition.requestStream && !definition.responseStream,
);
