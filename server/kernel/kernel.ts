import type { AmdPlatform } from '../hardware/amd/platform.js';
import type { CostLedger } from '../hardware/costs.js';
import type { Dram } from '../hardware/dram.js';
import type { Entropy } from '../hardware/entropy.js';
import { MiscController } from './cgroup/misc.js';
import type { Clock } from './clock.js';
import type { HostConfig } from './config.js';
import type { InitExFile } from './drivers/ccp/init-ex.js';
import { Psp } from './drivers/ccp/psp.js';
import type { Result } from './failure.js';
import { failed } from './failure.js';
import { FdTable } from './fs/fd-table.js';
import type { File } from './fs/file.js';
import { KmemOwner } from './kmem.js';
import type { PostMovePolicy } from './kvm/post-move/policy.js';
import type { Vm } from './kvm/vm.js';
import type { KvmX86Ops } from './kvm/x86/ops.js';
import { AddressSpace } from './mm/address-space.js';
import type { PageAllocator } from './mm/page.js';
import type { PageProvider } from './mm/page-provider.js';
import { Process } from './process/process.js';
import type { Findings } from './sanitizer/findings.js';
import { Sanitizer } from './sanitizer/sanitizer.js';
import type { Scheduler } from './sched/scheduler.js';
import type { Task } from './sched/task.js';
import type { MightSleep } from './sched/wait.js';
import { TimerQueue } from './timer.js';

const INIT_PID = 1;
const KTHREADD_PID = 2;

/** What a kernel is made of; `createHost` puts it together. */
export interface KernelParts {
  readonly config: HostConfig;
  readonly dram: Dram;
  readonly pages: PageAllocator;
  readonly scheduler: Scheduler;
  readonly costs: CostLedger;
  readonly entropy: Entropy;
  readonly clock: Clock;
  readonly findings: Findings;
  /** Null on an Intel host. */
  readonly amd: AmdPlatform | null;
  /** Module parameter `init_ex_path` of the ccp driver. */
  readonly initExFile: InitExFile | null;
}

/** One simulated kernel: its processes and its VMs, over the hardware it was given. Two of them share nothing. */
export class Kernel implements Omit<KernelParts, 'initExFile'> {
  readonly config: HostConfig;
  readonly dram: Dram;
  readonly pages: PageAllocator;
  readonly scheduler: Scheduler;
  readonly costs: CostLedger;
  readonly entropy: Entropy;
  readonly clock: Clock;
  readonly findings: Findings;
  readonly amd: AmdPlatform | null;
  /** `psp_master`: the driver of the secure processor; null on an Intel host. */
  readonly psp: Psp | null;
  readonly miscCgroups: MiscController;
  readonly sanitizer: Sanitizer;
  /** What can be opened, by path (`misc_register`); the argument is the access mode and O_NONBLOCK. */
  readonly devices = new Map<string, (flags: number) => Result<File>>();
  /** Every armed timer; whoever drives the host advances it. */
  readonly timers = new TimerQueue();
  /** Kernel memory that belongs to no VM or process. */
  readonly kmem = new KmemOwner('kernel');
  /** Process 1: whoever names no process acts as it. */
  readonly init: Process;
  /** Owner of kernel threads. */
  private readonly kthreadd: Process;
  readonly processes = new Map<number, Process>();
  /** Every VM that has not been destroyed, by number (`vm_list`). */
  readonly vms = new Map<number, Vm>();
  private nextPid = 100;
  private nextVm = 1;
  private nextInode = 1;

  constructor(
    parts: KernelParts,
    /** The vendor module that is loaded: kvm_amd or kvm_intel. */
    ops: (kernel: Kernel) => KvmX86Ops,
    public defaultPostMovePolicy: PostMovePolicy,
  ) {
    ({
      config: this.config,
      dram: this.dram,
      pages: this.pages,
      scheduler: this.scheduler,
      costs: this.costs,
      entropy: this.entropy,
      clock: this.clock,
      findings: this.findings,
      amd: this.amd,
    } = parts);
    const { sev, cpus } = this.config;
    const { initExFile } = parts;
    this.psp =
      this.amd === null ? null : new Psp(this.amd, this.dram, { es: sev.es, snp: sev.enabled && sev.snp, cpus, initExFile });
    this.miscCgroups = new MiscController({
      sev: Math.max(0, sev.asids - sev.minSevAsid + 1),
      sev_es: Math.min(sev.asids, sev.minSevAsid - 1),
    });
    this.sanitizer = new Sanitizer(this.findings, this.pages, this.amd, this.vms, this.scheduler);
    this.init = new Process(INIT_PID, new AddressSpace(this.pages), new FdTable(), null, 'init');
    this.kthreadd = new Process(KTHREADD_PID, null, new FdTable(), null, 'kthreadd');
    this.processes.set(INIT_PID, this.init);
    this.ops = ops(this);
  }

  readonly ops: KvmX86Ops;

  /** A new process with empty memory and no descriptors. */
  spawn(parent: Process | null, provider: PageProvider = this.pages): Process {
    const process = new Process(this.nextPid++, new AddressSpace(provider), new FdTable(), parent);
    this.processes.set(process.pid, process);
    return process;
  }

  /** `fork`: a copy of the descriptors and of the memory. */
  fork(parent: Process): Result<Process> {
    const mm = parent.mm?.fork();
    if (mm === undefined) throw new Error('a kernel thread cannot fork');
    if (failed(mm)) return mm;
    const child = new Process(this.nextPid++, mm, parent.files.clone(), parent);
    this.processes.set(child.pid, child);
    return child;
  }

  /** Ends a process: as a kernel worker, since its own tasks die. `done` is called when nothing of it is left. */
  exit(process: Process, done: () => void = () => {}): void {
    const kernel = this;
    this.work(`exit of ${process.name}`, function* exit(current) {
      yield* process.exit(current);
      kernel.processes.delete(process.pid);
      done();
    });
  }

  /** `queue_work`: runs `body` as a kernel thread. */
  work(label: string, body: (current: Task) => MightSleep<void>): void {
    this.scheduler.start(this.kthreadd, label, body, () => {});
  }

  /** A number for a new VM, never used again. */
  allocateVmId(): number {
    return this.nextVm++;
  }

  /** An inode number for an anonymous file. */
  allocateInode(): number {
    return this.nextInode++;
  }
}
