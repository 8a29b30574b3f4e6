import { randomBytes } from 'node:crypto';
import { Failure, type Result } from '../kernel/failure.js';
import type { Kernel } from '../kernel/kernel.js';
import type { Process } from '../kernel/process/process.js';

/** Processes that a host keeps at the same time. */
const PROCESSES_MAX = 16_384;

/** How a process came to be, which decides who may act as it and what ends it. */
type Lease =
  /** Ends when the stream of Attach ends; so does every child that has not attached itself. */
  | { readonly kind: 'attached' }
  /** Forked, and living under its parent's lease. */
  | { readonly kind: 'inherited'; readonly from: Process }
  /** Lives until Exit: for a person with grpcurl. */
  | { readonly kind: 'spawned' };

/** What the holder of a lease is told of its process. */
export type ProcessEvent =
  | { readonly kind: 'fd-received'; readonly fd: number; readonly fromPid: number; readonly file: string }
  | { readonly kind: 'signalled'; readonly signo: number; readonly tid: number; readonly fromPid: number }
  | { readonly kind: 'exited'; readonly status: number };

/** From whom a process takes descriptors by its pid, and how many more. */
type Consent = Map<number | 'any', number>;

interface Entry {
  readonly process: Process;
  readonly token: string;
  lease: Lease;
  readonly consent: Consent;
  notify: (event: ProcessEvent) => void;
}

/** A process and the capability to act as it. */
export interface Holder {
  readonly process: Process;
  readonly token: string;
}

const notFound = (given: string): Failure =>
  new Failure('ESRCH', 'PROCESS_NOT_FOUND', 'find_task_by_vpid', {
    field: 'simkvm-process',
    given,
    allowed: 'the token that Attach, Fork or Spawn gave; on loopback also the pid 1 or that of a spawned process',
  });

const noSuchPid = (pid: number): Failure =>
  new Failure('ESRCH', 'NO_SUCH_PROCESS', 'find_task_by_vpid', { field: 'pid', given: String(pid) });

/** Who may act as which process. A token is a capability: whoever has it is the process. */
export class ProcessRegistry {
  private readonly byToken = new Map<string, Entry>();
  private readonly byPid = new Map<number, Entry>();
  private readonly watchers: ((process: Process) => void)[] = [];

  constructor(private readonly kernel: Kernel) {}

  /** A new process under a lease, or one without (grpcurl). */
  create(kind: 'attached' | 'spawned'): Result<Holder> {
    return this.full() ?? this.add(this.kernel.spawn(null), { kind });
  }

  /** Makes a forked child known; it lives under its parent's lease until it attaches itself. */
  adopt(child: Process, parent: Process): Holder {
    return this.add(child, { kind: 'inherited', from: parent });
  }

  /** The limit on processes, if it is reached. */
  full(): Failure | null {
    if (this.byPid.size < PROCESSES_MAX) return null;
    return new Failure('EAGAIN', 'TOO_MANY_PROCESSES', 'copy_process', { limit: String(PROCESSES_MAX) });
  }

  /** A forked or spawned process gets a lease of its own. */
  takeLease(token: string): Result<Holder> {
    const entry = this.byToken.get(token);
    if (entry === undefined) return notFound('a token that is not known');
    if (entry.lease.kind === 'attached')
      return new Failure('EBUSY', 'PROCESS_ALREADY_ATTACHED', 'ptrace_attach', { pid: String(entry.process.pid) });
    entry.lease = { kind: 'attached' };
    return entry;
  }

  /** From now on the holder of the lease is told what happens to the process. */
  listen(process: Process, notify: (event: ProcessEvent) => void): void {
    const entry = this.byPid.get(process.pid);
    if (entry !== undefined) entry.notify = notify;
  }

  /** `ending` is told of every process that is about to exit, while it still has all that it has. */
  onEnd(ending: (process: Process) => void): void {
    this.watchers.push(ending);
  }

  /** Tells the holder of the lease, if there is one. */
  notify(process: Process, event: ProcessEvent): void {
    this.byPid.get(process.pid)?.notify(event);
  }

  /**
   * The process that a call's metadata names.
   * @param name token, or a pid where that is enough; undefined means pid 1
   * @param onLoopback whether the caller is on this machine
   */
  resolve(name: string | undefined, onLoopback: boolean): Result<Process> {
    if (name === undefined) {
      if (onLoopback) return this.kernel.init;
      return new Failure('EPERM', 'PROCESS_REQUIRED', 'find_task_by_vpid', { field: 'simkvm-process', allowed: 'a token' });
    }
    const byToken = this.byToken.get(name);
    if (byToken !== undefined) return byToken.process;
    if (!onLoopback) return notFound('not a token');
    if (name === '1') return this.kernel.init;
    const byPid = this.byPid.get(Number(name));
    return byPid?.lease.kind === 'spawned' ? byPid.process : notFound(name);
  }

  /** A live process by its pid, for signals. ESRCH. */
  byNumber(pid: number): Result<Process> {
    return pid === this.kernel.init.pid ? this.kernel.init : (this.byPid.get(pid)?.process ?? noSuchPid(pid));
  }

  /** `process` takes `limit` more descriptors by its pid from `from`; 0 withdraws consent. ESRCH. */
  accept(process: Process, from: number | 'any', limit: number): Failure | null {
    if (from !== 'any' && from !== this.kernel.init.pid && !this.byPid.has(from))
      return noSuchPid(from).with({ field: 'from_pid' });
    const consent = this.byPid.get(process.pid)?.consent;
    if (limit === 0) consent?.delete(from);
    else consent?.set(from, limit);
    return null;
  }

  /** The process that is to get a descriptor: by its token, or by its pid if it has accepted the sender. ESRCH, EPERM. */
  receiver(sender: Process, target: { token: string } | { pid: number }): Result<Process> {
    if ('token' in target) return this.byToken.get(target.token)?.process ?? notFound('a token that is not known');
    if (target.pid === this.kernel.init.pid) return this.kernel.init;
    const entry = this.byPid.get(target.pid);
    if (entry === undefined) return noSuchPid(target.pid);
    if (entry.lease.kind === 'spawned' || takeConsent(entry.consent, sender.pid)) return entry.process;
    return new Failure('EPERM', 'RECEIVER_HAS_NOT_ACCEPTED', 'pidfd_getfd', {
      field: 'pid',
      given: String(target.pid),
      allowed: "the receiver's token, or a receiver that has called AcceptFds for this pid",
    });
  }

  /** Ends a process and the children that live under its lease. `done` is called when the last of them has exited. */
  end(process: Process, status: number, done: () => void = () => {}): void {
    const ending = this.withInherited(process);
    let left = ending.length;
    for (const one of ending) {
      const entry = this.byPid.get(one.pid);
      if (entry !== undefined) {
        this.byPid.delete(one.pid);
        this.byToken.delete(entry.token);
      }
      for (const ending of this.watchers) ending(one);
      this.kernel.exit(one, () => {
        entry?.notify({ kind: 'exited', status });
        if (--left === 0) done();
      });
    }
  }

  private withInherited(process: Process): Process[] {
    const children = [...this.byPid.values()].filter(({ lease }) => lease.kind === 'inherited' && lease.from === process);
    return [process, ...children.flatMap((entry) => this.withInherited(entry.process))];
  }

  private add(process: Process, lease: Lease): Holder {
    // Not from the host's seed: it is public, and a token of one start of the daemon must mean nothing to the next.
    const token = randomBytes(16).toString('hex');
    const entry: Entry = { process, token, lease, consent: new Map(), notify: () => {} };
    this.byPid.set(process.pid, entry);
    this.byToken.set(token, entry);
    return entry;
  }
}

const takeConsent = (consent: Consent, from: number): boolean => {
  for (const key of [from, 'any'] as const) {
    const left = consent.get(key);
    if (left === undefined) continue;
    if (left === 1) consent.delete(key);
    else consent.set(key, left - 1);
    return true;
  }
  return false;
};
