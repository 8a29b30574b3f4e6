import { createHash } from 'node:crypto';
import { CpuVendor, FindingDomain, type FindingInit, type HostInit } from '../../../gen/messages.js';
import { HostService } from '../../../gen/services.js';
import { COSTS, type Primitive } from '../../hardware/costs.js';
import { PAGE_SIZE, pfn } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import { postMovePolicy } from '../../kernel/kvm/post-move/index.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import { VmFile } from '../../kernel/kvm/vm-file.js';
import type { Finding } from '../../kernel/sanitizer/findings.js';
import type { Task } from '../../kernel/sched/task.js';
import { type Host, refused, reply, type UnaryMethod } from '../call.js';
import { overLimit } from '../limits.js';
import { paginate } from '../pages.js';
import { type Route, unary } from '../route.js';
import { sumView } from '../views/kmem.js';
import { policyName, policyNumber } from '../views/policy.js';
import { EventFdNumbers, vmSummary, vmView } from '../views/vm.js';

const KERNEL_VERSION = '6.18';
const CPU_MODEL = { amd: 'AMD EPYC (simulated)', intel: 'Intel Xeon (simulated)' } as const;
const READ_MAX = 2 ** 20;

const read = <Req, Res>(syscall: string, handle: UnaryMethod<Req, Res>['handle']): UnaryMethod<Req, Res> => ({
  role: 'process',
  mutates: false,
  syscall,
  handle,
});

const operate = <Req, Res>(syscall: string, handle: UnaryMethod<Req, Res>['handle']): UnaryMethod<Req, Res> => ({
  role: 'operator',
  mutates: true,
  syscall,
  handle,
});

/** The VM that a request names: by number, or by a descriptor of the caller. */
const vmOf = (current: Task, host: Host, { vm_id, fd }: { vm_id: number | null; fd: number | null }): Result<Vm> => {
  if (fd !== null) {
    const file = current.process.files.get(fd);
    if (failed(file)) return file.with({ field: 'fd' });
    if (file.ops instanceof VmFile) return file.ops.vm;
    return new Failure('EINVAL', 'FD_NOT_VM', 'simkvmd', { field: 'fd', given: file.ops.name, allowed: 'a VM' });
  }
  const vm = host.kernel.vms.get(vm_id ?? 0);
  return (
    vm ?? new Failure('ENOENT', 'NO_SUCH_VM', 'simkvmd', { field: 'vm_id', given: String(vm_id), allowed: 'as ListVms names it' })
  );
};

const sevView = (host: Host): HostInit['sev'] => {
  const { amd, config, ops } = host.kernel;
  if (amd === null || !config.sev.enabled) return null;
  const { major, minor, build } = amd.processor.version;
  const loaded = amd.asidKeys.loaded();
  return {
    es: config.sev.es,
    snp: config.sev.snp,
    max_asid: config.sev.asids,
    min_sev_asid: config.sev.minSevAsid,
    sev_asids_used: loaded.filter((id) => id >= config.sev.minSevAsid).length,
    sev_es_asids_used: loaded.filter((id) => id < config.sev.minSevAsid).length,
    asids_to_reclaim: ops.asidsToReclaim?.() ?? 0,
    api_major: major,
    api_minor: minor,
    build,
    platform_state: amd.processor.state.toUpperCase(),
    guest_count: amd.processor.guests().length + amd.processor.snpGuests().length,
    c_bit: 51,
  };
};

const hostView = (host: Host): HostInit => {
  const { kernel } = host;
  const { config } = kernel;
  return {
    version: host.version,
    boot_id: host.bootId,
    vendor: config.vendor === 'amd' ? CpuVendor.CPU_VENDOR_AMD : CpuVendor.CPU_VENDOR_INTEL,
    cpu_model: CPU_MODEL[config.vendor],
    cpus: config.cpus,
    seed: config.seed,
    kernel_version: KERNEL_VERSION,
    memory: { total_bytes: kernel.dram.total * PAGE_SIZE, allocated_bytes: kernel.dram.used * PAGE_SIZE },
    sev: sevView(host),
    post_move_policy: policyNumber(kernel.defaultPostMovePolicy.name),
    options: {
      exclusive_irqfd: config.exclusiveIrqfd,
      known_upstream_defects: config.knownUpstreamDefects,
      dismantle_releases_irqfds: config.dismantleReleasesIrqfds,
      snp_move_as_code: config.snpMove === 'as_code',
      cost_factors: { ...config.costFactors },
    },
    processes: kernel.processes.size,
    vms: kernel.vms.size,
    kmem: sumView([
      kernel.kmem,
      ...[...kernel.processes.values()].map(({ kmem }) => kmem),
      ...[...kernel.vms.values()].map(({ kmem }) => kmem),
    ]),
    findings: kernel.findings.all.length,
    simulated_ns: Math.round(kernel.costs.nanoseconds),
  };
};

const findingView = (finding: Finding, index: number): FindingInit => ({
  finding_id: index + 1,
  domain: finding.domain === 'kernel' ? FindingDomain.FINDING_DOMAIN_KERNEL : FindingDomain.FINDING_DOMAIN_GUEST,
  kind: finding.kind,
  message: finding.message,
  vm_id: finding.vm ?? 0,
  call: finding.call,
  history: [...finding.history],
});

/** The bytes on the memory bus: what the cells hold, whoever owns them. A frame that is not in use reads as zero. */
const readPhysical = (host: Host, from: number, length: number): Uint8Array => {
  const data = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const offset = (from + done) % PAGE_SIZE;
    const count = Math.min(PAGE_SIZE - offset, length - done);
    const frame = host.kernel.dram.at(pfn(Math.floor((from + done) / PAGE_SIZE)));
    if (frame !== undefined) data.set(frame.view(null).subarray(offset, offset + count), done);
    done += count;
  }
  return data;
};

/** The simulator's own control, and what it lets one see. */
export const hostRoutes = (): readonly Route[] => {
  const eventfds = new EventFdNumbers();
  return [
    unary(
      HostService.getHost,
      read('uname', (_current, host) => reply({ host: hostView(host) })),
    ),
    unary(
      HostService.listVms,
      read('readdir(/sys/kernel/debug/kvm)', (_current, host, request) => {
        const page = paginate([...host.kernel.vms.values()], request, ({ id }) => id);
        if (failed(page)) return refused(page);
        return reply({ vms: page.items.map(vmSummary), next_page_token: page.next_page_token });
      }),
    ),
    unary(
      HostService.getVm,
      read('read(/sys/kernel/debug/kvm)', (current, host, request) => {
        const vm = vmOf(current, host, request);
        return failed(vm) ? refused(vm) : reply({ vm: vmView(vm, eventfds) });
      }),
    ),
    unary(
      HostService.setPostMovePolicy,
      operate('set_post_move_policy', (current, host, { policy, vm_id, fd, validate_only }) => {
        const name = policyName(policy ?? 0);
        if (name === undefined)
          return refused(
            new Failure('EINVAL', 'NO_SUCH_POLICY', 'simkvmd', { field: 'policy', given: String(policy), allowed: '1 to 10' }),
          );
        const vm = vm_id === null && fd === null ? null : vmOf(current, host, { vm_id, fd });
        if (failed(vm)) return refused(vm);
        const previous = policyNumber((vm?.postMovePolicy ?? host.kernel.defaultPostMovePolicy).name);
        const refusal = vm === null || vm.life.kind === 'alive' ? null : tooLate(vm);
        if (validate_only) return reply({ previous, verdict: verdictOf(refusal) });
        if (refusal !== null) return refused(refusal);
        if (vm === null) host.kernel.defaultPostMovePolicy = postMovePolicy(name);
        else vm.postMovePolicy = postMovePolicy(name);
        return reply({ previous });
      }),
    ),
    unary(
      HostService.listFindings,
      read('read(/sys/kernel/debug/simkvm/findings)', (_current, host, request) => {
        const { all, dropped } = host.kernel.findings;
        const wanted = all
          .map(findingView)
          .filter(({ finding_id }) => BigInt(finding_id ?? 0) > request.after_finding_id)
          .filter(({ vm_id }) => request.vm_id === null || vm_id === request.vm_id);
        const page = paginate(wanted, request, ({ finding_id }) => Number(finding_id));
        if (failed(page)) return refused(page);
        return reply({ findings: page.items, next_page_token: page.next_page_token, dropped });
      }),
    ),
    unary(
      HostService.reset,
      operate('close_range', function* handle(current, host) {
        const { init } = host.kernel;
        const closed_fds = init.files.size;
        yield* init.files.closeAll(current);
        return reply({ closed_fds });
      }),
    ),
    unary(
      HostService.readPhysical,
      operate('read(/dev/mem)', (_current, host, { hpa, length }) => {
        const refusal = overLimit('length', Number(length ?? 0n), READ_MAX, 'bytes') ?? beyondPhysical(hpa ?? 0n);
        if (refusal !== null) return refused(refusal);
        const data = readPhysical(host, Number(hpa), Number(length ?? 0n));
        return reply({ data, sha256: createHash('sha256').update(data).digest('hex') });
      }),
    ),
    unary(
      HostService.getCosts,
      read('perf_event_read', (_current, host) => {
        const { costs, config } = host.kernel;
        const primitives = [...costs.counts].map(([name, count]) => costView(name, count, config.costFactors[name] ?? 1));
        return reply({ primitives, simulated_ns: Math.round(costs.nanoseconds) });
      }),
    ),
  ];
};

const costView = (name: Primitive, count: number, factor: number) => {
  const each = COSTS[name].nanoseconds * factor;
  return {
    name,
    count,
    nanoseconds_each: Math.round(each),
    nanoseconds: Math.round(count * each),
    source: COSTS[name].source,
  };
};

const tooLate = (vm: Vm): Failure =>
  new Failure('EBUSY', 'VM_ALREADY_MOVED', 'simkvmd', {
    object: `vm ${vm.id}`,
    state: vm.life.kind,
    allowed: 'a VM that is alive',
  });

/** A failure that did not happen: the answer of a dry run. */
export const verdictOf = (refusal: Failure | null) =>
  refusal === null
    ? { allowed: true }
    : {
        allowed: false,
        errno_name: refusal.errno,
        reason: refusal.reason,
        kernel_ref: refusal.kernelRef,
        details: {
          ...refusal.details,
          ...(refusal.fwError === undefined ? {} : { firmware: `0x${refusal.fwError.toString(16)}` }),
        },
      };

const PHYSICAL_BITS = 52n;

const beyondPhysical = (hpa: bigint): Failure | null =>
  hpa < 1n << PHYSICAL_BITS
    ? null
    : new Failure('EINVAL', 'FIELD_OUT_OF_RANGE', 'simkvmd', {
        field: 'hpa',
        given: `0x${hpa.toString(16)}`,
        allowed: 'below 2^52',
      });
