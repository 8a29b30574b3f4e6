import type { AttachRequest, AttachResponseInit } from '../../../gen/messages.js';
import { ProcessService } from '../../../gen/services.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import type { File } from '../../kernel/fs/file.js';
import { VcpuFile } from '../../kernel/kvm/vcpu-file.js';
import { VmFile } from '../../kernel/kvm/vm-file.js';
import type { Process } from '../../kernel/process/process.js';
import { SIGKILL } from '../../kernel/process/thread.js';
import { close, dup, dup3, sendFd } from '../../kernel/syscalls/descriptors.js';
import { fork, kill, sigprocmask } from '../../kernel/syscalls/process.js';
import { type Host, method, refused, reply, ret } from '../call.js';
import { overLimit } from '../limits.js';
import { paginate } from '../pages.js';
import type { Holder, ProcessEvent } from '../process-registry.js';
import { type Route, unary } from '../route.js';
import { type StreamContext, serverStream } from '../streams.js';

/** Versions of the stream of Attach; the one before it is accepted too, once there is one. */
const PROTOCOL_VERSION = 1;
const NAME_MAX = 64;
const SIGNAL_STATUS = 128;

const invalid = (reason: string, field: string, given: string, allowed: string): Failure =>
  new Failure('EINVAL', reason, 'simkvmd', { field, given, allowed });

const checkName = (name: string): Failure | null => overLimit('name', name.length, NAME_MAX, 'characters');

const eventMessage = (event: ProcessEvent): AttachResponseInit => {
  switch (event.kind) {
    case 'fd-received':
      return { fd_received: { fd: event.fd, from_pid: event.fromPid, kind: kindOf(event.file) } };
    case 'signalled':
      return { signalled: { signo: event.signo, tid: event.tid, from_pid: event.fromPid } };
    case 'exited':
      return { exited: { status: event.status } };
  }
};

const openLease = (host: Host, { protocol_versions, name, token }: AttachRequest): Result<Holder> => {
  if (protocol_versions.length > 0 && !protocol_versions.includes(PROTOCOL_VERSION))
    return invalid('PROTOCOL_VERSION', 'protocol_versions', protocol_versions.join(', '), String(PROTOCOL_VERSION));
  return checkName(name) ?? (token === null ? host.processes.create('attached') : host.processes.takeLease(token));
};

/** The lease of a process: hello, then what happens to it, until either side ends. */
const attach = async (
  request: AttachRequest,
  { dispatch, send, signal }: StreamContext<AttachResponseInit>,
): Promise<Failure | null> => {
  const { host } = dispatch;
  const holder = openLease(host, request);
  if (failed(holder)) return holder;
  const { process, token } = holder;
  let sequence = 1;
  let exited = (): void => {};
  const over = new Promise<void>((resolve) => {
    exited = resolve;
  });
  host.processes.listen(process, (event) => {
    void send({ sequence: ++sequence, ...eventMessage(event) });
    if (event.kind === 'exited') exited();
  });
  signal.addEventListener('abort', () => host.processes.end(process, SIGNAL_STATUS + SIGKILL), { once: true });
  await send({ sequence, hello: { protocol_version: PROTOCOL_VERSION, pid: process.pid, token, boot_id: host.bootId } });
  await over;
  return null;
};

/** Kind of file, from what a link in /proc shows. */
const kindOf = (path: string): string => {
  const name = path.replace(/^anon_inode:|^\/dev\/|[[\]]/g, '').replace(/^\/?memfd:.*/, 'memfd');
  return name.replace(/^kvm-vcpu-stats.*|^kvm-vm-stats.*|^kvm-stats.*/, 'kvm-stats').replace(/:.*$/, '');
};

const vmIdOf = ({ ops }: File): number => {
  if (ops instanceof VmFile) return ops.vm.id;
  return ops instanceof VcpuFile ? ops.vcpu.vm.id : 0;
};

const describe = (process: Process) =>
  [...process.files.entries()]
    .sort(([a], [b]) => a - b)
    .map(([fd, { file, closeOnExec }]) => ({
      fd,
      path: file.ops.name,
      kind: kindOf(file.ops.name),
      flags: file.flags,
      cloexec: closeOnExec,
      vm_id: vmIdOf(file),
      references: file.referenceCount,
    }));

/** Processes: what a client is on this host, with its descriptors. */
export const processRoutes: readonly Route[] = [
  serverStream(ProcessService.attach, { role: 'anyone', syscall: 'attach' }, attach),
  unary(ProcessService.spawn, {
    role: 'operator',
    mutates: true,
    syscall: 'spawn',
    handle: (_current, host, { name }) => {
      const refusal = checkName(name);
      const holder = refusal ?? host.processes.create('spawned');
      return failed(holder) ? refused(holder) : reply({ ret: holder.process.pid, token: holder.token });
    },
  }),
  unary(
    ProcessService.fork,
    method('fork', true, (current, host, { name }) => {
      const refusal = checkName(name ?? '') ?? host.processes.full();
      const child = refusal ?? fork(host.kernel, current);
      if (failed(child)) return refused(child);
      return reply({ ret: child.pid, token: host.processes.adopt(child, current.process).token });
    }),
  ),
  unary(
    ProcessService.exit,
    method(
      'exit_group',
      true,
      ret((current, { status }, host) => {
        if (status > 255) return invalid('FIELD_OUT_OF_RANGE', 'status', String(status), '0 to 255');
        if (current.process === host.kernel.init) return new Failure('EPERM', 'INIT_CANNOT_EXIT', 'do_exit', { pid: '1' });
        // Its own call is one of the tasks that exit waits for: it has to be answered first.
        host.kernel.work(`exit_group of ${current.process.name}`, function* exit() {
          yield { kind: 'resched' };
          host.processes.end(current.process, status);
        });
        return 0;
      }),
    ),
  ),
  unary(
    ProcessService.signal,
    method(
      'tgkill',
      true,
      ret((current, { pid, tid, signo }, host) => {
        const target = host.processes.byNumber(pid ?? -1);
        if (failed(target)) return target;
        if (signo === SIGKILL && target === host.kernel.init)
          return new Failure('EPERM', 'INIT_TAKES_NO_SIGKILL', 'do_send_sig_info', { pid: '1' });
        const event = { kind: 'signalled', signo: signo ?? 0, tid: tid ?? 0, fromPid: current.process.pid } as const;
        const sent = signo === SIGKILL ? 0 : kill(host.kernel, target, signo ?? -1, tid ?? undefined);
        if (!failed(sent) && signo !== 0) host.processes.notify(target, event);
        if (signo === SIGKILL) host.processes.end(target, SIGNAL_STATUS + SIGKILL);
        return sent;
      }),
    ),
  ),
  unary(
    ProcessService.sigprocmask,
    method(
      'rt_sigprocmask',
      true,
      ret((current, { how, signals }) => sigprocmask(current, how ?? -1, signals)),
    ),
  ),
  unary(
    ProcessService.close,
    method(
      'close',
      true,
      ret((current, { fd }) => close(current, fd ?? -1)),
    ),
  ),
  unary(
    ProcessService.dup,
    method(
      'dup3',
      true,
      ret((current, { fd, newfd, flags }) => (newfd === null ? dup(current, fd ?? -1) : dup3(current, fd ?? -1, newfd, flags))),
    ),
  ),
  unary(
    ProcessService.sendFd,
    method(
      'sendmsg(SCM_RIGHTS)',
      true,
      ret(function* handle(current, { fd, token, pid }, host) {
        const file = current.process.files.get(fd ?? -1, 'receive_fd');
        if (failed(file)) return file;
        const receiver = host.processes.receiver(current.process, token === null ? { pid: pid ?? -1 } : { token });
        if (failed(receiver)) return receiver;
        const received = yield* sendFd(current, fd ?? -1, receiver);
        if (!failed(received))
          host.processes.notify(receiver, {
            kind: 'fd-received',
            fd: received,
            fromPid: current.process.pid,
            file: file.ops.name,
          });
        return received;
      }),
    ),
  ),
  unary(
    ProcessService.acceptFds,
    method(
      'recvmsg',
      true,
      ret((current, { from_pid, limit }, host) => host.processes.accept(current.process, from_pid ?? 'any', limit ?? 0) ?? 0),
    ),
  ),
  unary(
    ProcessService.listFds,
    method('readdir(/proc/self/fd)', false, (current, _host, request) => {
      const page = paginate(describe(current.process), request, (fd) => fd.fd);
      return failed(page) ? refused(page) : reply({ ret: 0, fds: page.items, next_page_token: page.next_page_token });
    }),
  ),
];
