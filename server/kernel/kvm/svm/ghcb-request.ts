import { GHCB, setGhcbField } from '../../../hardware/amd/ghcb.js';
import { type Gpa, PAGE_SIZE } from '../../../hardware/units.js';
import { Failure } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import type { Vcpu } from '../vcpu.js';
import type { Turn } from '../x86/vcpu-arch.js';
import { guestAddress, mapGuestPage, readGuest } from './guest-memory.js';
import type { SevModule } from './sev-module.js';

/** `GHCB_SCRATCH_AREA_LIMIT`. */
const SCRATCH_LIMIT = 16 * PAGE_SIZE;

/** What the host writes into `sw_exit_info_1` when a request is malformed, and why into `sw_exit_info_2`. */
const MALFORMED_INPUT = 2n;
/** The same field: the host asks for an exception, which `sw_exit_info_2` has in the format of EVENTINJ (APM volume 2, 15.20). */
const ISSUE_EXCEPTION = 1n;
const EVENT_INJECTION = { EXCEPTION: 3n << 8n, VALID: 1n << 31n } as const;
export const GHCB_ERR = {
  INVALID_USAGE: 2n,
  INVALID_SCRATCH_AREA: 3n,
  MISSING_INPUT: 4n,
  INVALID_INPUT: 5n,
  INVALID_EVENT: 6n,
} as const;

/** What a guest has put into its GHCB (`sev_es_sync_from_ghcb`). */
export interface GhcbRequest {
  readonly module: SevModule;
  /** In whose KVM_RUN the guest has asked. */
  readonly current: Task;
  readonly vcpu: Vcpu;
  readonly ghcb: Gpa;
  readonly code: bigint;
  readonly info1: bigint;
  readonly info2: bigint;
  readonly scratch: bigint | null;
  /** Null where the guest has not declared the register as valid. */
  readonly rax: bigint | null;
  readonly rbx: bigint | null;
  readonly rcx: bigint | null;
  readonly rdx: bigint | null;
  readonly cpl: bigint | null;
  readonly xcr0: bigint | null;
}

export type GhcbHandler = (request: GhcbRequest) => Turn;
type Register = 'rax' | 'rbx' | 'rcx' | 'rdx';

/** Writes to the GHCB, which is mapped anew: between request and answer userspace may have run. */
const withGhcb = ({ vcpu, ghcb }: Pick<GhcbRequest, 'vcpu' | 'ghcb'>, write: (page: Uint8Array) => void): Turn => {
  const page = mapGuestPage(vcpu, ghcb);
  if (page !== null) write(page);
  return 'again';
};

/** `svm_vmgexit_bad_input`. */
export const reject = (request: Pick<GhcbRequest, 'vcpu' | 'ghcb'>, reason: bigint): Turn =>
  withGhcb(request, (page) => {
    setGhcbField(page, GHCB.swExitInfo1, MALFORMED_INPUT);
    setGhcbField(page, GHCB.swExitInfo2, reason);
  });

/** `svm_vmgexit_inject_exception`: the guest is asked to take an exception where it has asked. */
export const issueException = (request: GhcbRequest, vector: number): Turn =>
  withGhcb(request, (page) => {
    setGhcbField(page, GHCB.swExitInfo1, ISSUE_EXCEPTION);
    setGhcbField(page, GHCB.swExitInfo2, EVENT_INJECTION.VALID | EVENT_INJECTION.EXCEPTION | BigInt(vector));
  });

/** `svm_vmgexit_success`, `svm_vmgexit_no_action`: answers with a value of exit_info_2. */
export const succeed = (request: GhcbRequest, info2: bigint): Turn =>
  withGhcb(request, (page) => {
    setGhcbField(page, GHCB.swExitInfo1, 0n);
    setGhcbField(page, GHCB.swExitInfo2, info2);
  });

/** `sev_es_sync_to_ghcb`: results in registers. */
export const answerRegisters = (request: GhcbRequest, values: Partial<Record<Register, bigint>>): Turn =>
  withGhcb(request, (page) => {
    for (const name of ['rax', 'rbx', 'rcx', 'rdx'] as const) {
      const value = values[name];
      if (value !== undefined) setGhcbField(page, GHCB[name], value);
    }
  });

/**
 * `setup_vmgexit_scratch`: where the data lies; in the shared buffer of the GHCB itself, or in at most 64 KiB of other shared
 * memory. Where it cannot lie is the guest's to hear; EFAULT: there is no memory.
 */
export const scratchArea = (request: GhcbRequest, length: bigint): Gpa | Turn => {
  const { vcpu, scratch, ghcb } = request;
  if (scratch === null) return reject(request, GHCB_ERR.MISSING_INPUT);
  const end = scratch + length;
  if (scratch === 0n || end >= 2n ** 64n) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  const start = guestAddress(scratch);
  if (start !== null && start >= ghcb && start < ghcb + PAGE_SIZE) {
    const buffer = ghcb + GHCB.sharedBuffer.offset;
    const fits = start >= buffer && end <= BigInt(buffer + GHCB.sharedBuffer.size);
    return fits ? start : reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  }
  if (length > BigInt(SCRATCH_LIMIT)) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  if (start !== null && readGuest(vcpu, start, Number(length)) !== null) return start;
  return new Failure('EFAULT', 'SCRATCH_AREA_MISSING', 'setup_vmgexit_scratch', { gpa: `0x${scratch.toString(16)}` });
};
