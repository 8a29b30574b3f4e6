import { F, FD_CLOEXEC } from '../../server/kernel/uapi/fcntl.js';
import { IOCTL } from '../../server/kernel/uapi/ioctls.js';
import { Arena } from './arena.js';
import { Handles } from './handles.js';
import type { JsonObject } from './json.js';
import { OpArgs } from './op-args.js';
import { finish, type Operation, type OpResult } from './operation.js';
import { FILE_OPS } from './ops/files.js';
import { IRQ_OPS } from './ops/irq.js';
import { MEMORY_OPS } from './ops/memory.js';
import { RAW_OPS } from './ops/raw.js';
import { REGS_OPS } from './ops/regs.js';
import { RUN_OPS } from './ops/run.js';
import { SYSTEM_OPS } from './ops/system.js';
import { THREAD_OPS } from './ops/threads.js';
import { VCPU_OPS } from './ops/vcpu.js';
import { VM_OPS } from './ops/vm.js';
import type { Outcome, SystemCalls } from './system-calls.js';

/** The errno of an op that this executor does not know: it says so instead of guessing. */
const ENOTSUP_EXECUTOR = 'ENOTSUP_EXECUTOR';

const OPERATIONS: ReadonlyMap<string, Operation> = new Map(
  Object.entries({
    ...SYSTEM_OPS,
    ...VM_OPS,
    ...IRQ_OPS,
    ...VCPU_OPS,
    ...REGS_OPS,
    ...RUN_OPS,
    ...MEMORY_OPS,
    ...FILE_OPS,
    ...RAW_OPS,
    ...THREAD_OPS,
  }),
);

/** Executes a script of the oracle's protocol on one thread; its threads and children share or copy its handles. */
export class Executor {
  readonly arena: Arena;

  private constructor(
    readonly calls: SystemCalls,
    readonly handles: Handles,
    /** Bytes of a vCPU's mapped run area. */
    readonly vcpuMmapSize: number,
  ) {
    this.arena = new Arena(calls);
  }

  /** An executor for the process of `calls`. Asks the host for the size of the run area first. */
  static async create(calls: SystemCalls): Promise<Executor> {
    const system = await calls.open('/dev/kvm', 2);
    if (system.errno !== null) throw new Error(`/dev/kvm cannot be opened: ${system.errno}`);
    const size = await calls.ioctl(Number(system.ret), IOCTL.KVM_GET_VCPU_MMAP_SIZE, 0n);
    await calls.close(Number(system.ret));
    return new Executor(calls, new Handles(), Number(size.ret));
  }

  /** An executor on another thread of the same process: the same names. */
  onThread(): Executor {
    return new Executor(this.calls.thread(), this.handles, this.vcpuMmapSize);
  }

  /** An executor in a child process: names as they are now. */
  async inChild(): Promise<Executor> {
    return new Executor(await this.calls.fork(), new Handles(this.handles), this.vcpuMmapSize);
  }

  /** Executes one op and gives its answer without `i`. */
  async execute(fields: JsonObject): Promise<OpResult> {
    const args = new OpArgs(fields, this.handles);
    const operation = OPERATIONS.get(args.name);
    if (operation === undefined) return { op: args.name, ret: null, errno: ENOTSUP_EXECUTOR };
    this.arena.reset();
    return { op: args.name, ...(await operation(this, args)) };
  }

  /** Executes a list of ops, numbered from 0. */
  async executeAll(ops: readonly JsonObject[]): Promise<OpResult[]> {
    const results: OpResult[] = [];
    for (const [i, fields] of ops.entries()) results.push({ i, ...(await this.execute(fields)) });
    return results;
  }

  /** The answer to a call that made a descriptor: it gets a number that is never used again, under the name `as`. */
  async finishFd(outcome: Outcome, args: OpArgs, name = args.text('as', '_unnamed')): Promise<OpResult> {
    if (outcome.errno !== null) return finish(outcome);
    const fd = Number(outcome.ret);
    const shown: OpResult = args.truthy('show_cloexec')
      ? { cloexec: ((await this.calls.fcntl(fd, F.GETFD, 0)).ret & BigInt(FD_CLOEXEC)) !== 0n }
      : {};
    this.handles.define(name).fd = await this.moveFd(fd);
    return { ret: 'fd', errno: null, ...shown };
  }

  /** Gives a descriptor a number that no handle has had. */
  async moveFd(fd: number): Promise<number> {
    const moved = await this.calls.fcntl(fd, F.DUPFD_CLOEXEC, this.handles.reserveFd());
    if (moved.errno !== null) return fd;
    await this.calls.close(fd);
    return Number(moved.ret);
  }
}
