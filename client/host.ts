import type {
  Finding,
  GetCostsResponse,
  GetHostResponse,
  GetVmResponse,
  Int64Init,
  ListFindingsResponse,
  ListVmsResponse,
  ReadPhysicalResponse,
  ResetResponse,
  SetPostMovePolicyResponse,
  Verdict,
  VmSummary,
} from '../gen/messages.js';
import { HostService } from '../gen/services.js';
import type { Caller } from './call.js';
import { withForms } from './forms.js';
import { type PostMovePolicyName, policyName, policyNumber } from './post-move-policy.js';
import { type CallingObject, present, syscall, valueOrThrow } from './syscall.js';

/** The largest page of a list. */
const PAGE_SIZE = 1000;

/** Which findings are wanted. */
export interface FindingsFilter {
  /** Only findings with a larger number. @default 0 */
  readonly afterFindingId?: Int64Init;
  /** Only findings about this VM. @default all */
  readonly vmId?: number;
}

/** What the sanitizer has found. */
export interface Findings {
  /** Oldest first. */
  readonly findings: readonly Finding[];
  /** Findings beyond the host's limit, which were counted and not kept. */
  readonly dropped: bigint;
}

const listVms = syscall(
  HostService.listVms,
  (_self: CallingObject, token: string) => ({ page_size: PAGE_SIZE, page_token: token }),
  (response: ListVmsResponse) => response,
);

const listFindings = syscall(
  HostService.listFindings,
  (_self: CallingObject, token: string, { afterFindingId, vmId }: FindingsFilter) => ({
    page_size: PAGE_SIZE,
    page_token: token,
    after_finding_id: afterFindingId,
    vm_id: vmId,
  }),
  (response: ListFindingsResponse) => response,
);

const validatePolicy = syscall(
  HostService.setPostMovePolicy,
  (_self: CallingObject, policy: PostMovePolicyName, vmId?: number) => ({
    policy: policyNumber(policy),
    vm_id: vmId,
    validate_only: true,
  }),
  ({ verdict }: SetPostMovePolicyResponse) => present(verdict, 'verdict'),
);

/** What an operator sees and sets. Nothing here is a system call. */
const hostCalls = {
  /** What the host is: vendor, CPU, key inventory, memory, seed, policy, version, kernel memory in all. */
  getHost: syscall(
    HostService.getHost,
    () => ({}),
    ({ host }: GetHostResponse) => present(host, 'host'),
  ),
  /** What debugfs and /proc would show of one VM. Errno: ENOENT (no such VM). */
  getVm: syscall(
    HostService.getVm,
    (_self: CallingObject, vmId: number) => ({ vm_id: vmId }),
    ({ vm }: GetVmResponse) => present(vm, 'vm'),
  ),
  /**
   * Chooses what a move does to its source, for VMs that are made from now on, or with `vmId` for that one; the value is the
   * policy before.
   * Errno: ENOENT (no such VM), EBUSY (the VM's context has moved already).
   */
  setPostMovePolicy: syscall(
    HostService.setPostMovePolicy,
    (_self: CallingObject, policy: PostMovePolicyName, vmId?: number) => ({ policy: policyNumber(policy), vm_id: vmId }),
    ({ previous }: SetPostMovePolicyResponse) => policyName(previous),
  ),
  /** Closes all descriptors and unmaps all memory of the init process; the value is how many were closed. */
  reset: syscall(
    HostService.reset,
    () => ({}),
    ({ closed_fds }: ResetResponse) => closed_fds,
  ),
  /**
   * What a reader on the memory bus sees: DRAM as it is, ciphertext where it is encrypted.
   * Errno: EFAULT (outside DRAM), E2BIG (more than 1 MiB).
   */
  readPhysical: syscall(
    HostService.readPhysical,
    (_self: CallingObject, hpa: Int64Init, length: Int64Init) => ({ hpa, length }),
    ({ data }: ReadPhysicalResponse) => data,
  ),
  /** How often each primitive has been done on this host, and what that comes to in simulated time. */
  getCosts: syscall(
    HostService.getCosts,
    () => ({}),
    (response: GetCostsResponse) => response,
  ),
} as const;

class HostObject implements CallingObject {
  constructor(readonly caller: Caller) {}
}

/** The host: `simkvm.host`. */
export class Host extends withForms(HostObject, hostCalls) {
  /** All VMs for which a reference is held, in the order of their ids; those whose last fd is closed included. */
  async listVms(): Promise<VmSummary[]> {
    const vms: VmSummary[] = [];
    for (let token = ''; ; ) {
      const page = valueOrThrow(await listVms(this, token));
      vms.push(...page.vms);
      token = page.next_page_token;
      if (token === '') return vms;
    }
  }

  /** What the sanitizer has found, oldest first. */
  async listFindings(filter: FindingsFilter = {}): Promise<Findings> {
    const findings: Finding[] = [];
    for (let token = ''; ; ) {
      const page = valueOrThrow(await listFindings(this, token, filter));
      findings.push(...page.findings);
      token = page.next_page_token;
      if (token === '') return { findings, dropped: page.dropped };
    }
  }

  /** Whether `setPostMovePolicy` would be allowed, and why not. It changes nothing. */
  async validatePostMovePolicy(policy: PostMovePolicyName, vmId?: number): Promise<Verdict> {
    return valueOrThrow(await validatePolicy(this, policy, vmId));
  }
}
