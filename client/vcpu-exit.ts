import {
  type KvmDebugExitArch,
  KvmExit,
  type KvmExitEmulationFailure,
  type KvmExitEoi,
  type KvmExitException,
  type KvmExitFailEntry,
  type KvmExitHw,
  type KvmExitHypercall,
  type KvmExitInternal,
  type KvmExitIo,
  type KvmExitMemoryFault,
  type KvmExitMmio,
  type KvmExitMsr,
  type KvmExitNotify,
  type KvmExitSnpReqCerts,
  type KvmExitSystemEvent,
  type KvmExitTprAccess,
  type KvmRun,
} from '../gen/messages.js';
import { present } from './syscall.js';

/** Exits whose reason says all. */
const PLAIN = [
  'KVM_EXIT_HLT',
  'KVM_EXIT_IRQ_WINDOW_OPEN',
  'KVM_EXIT_SHUTDOWN',
  'KVM_EXIT_INTR',
  'KVM_EXIT_SET_TPR',
  'KVM_EXIT_NMI',
  'KVM_EXIT_HYPERV',
  'KVM_EXIT_DIRTY_RING_FULL',
  'KVM_EXIT_AP_RESET_HOLD',
  'KVM_EXIT_X86_BUS_LOCK',
  'KVM_EXIT_XEN',
  'KVM_EXIT_TDX',
] as const;

/** What KVM_RUN came back with: the member of kvm_run's union that `reason` names, under the kernel's name for it. */
type ExitData =
  | { readonly reason: (typeof PLAIN)[number] }
  /** `hw` is null in a page that no exit has been written to yet: its reason is 0. */
  | { readonly reason: 'KVM_EXIT_UNKNOWN'; readonly hw: KvmExitHw | null }
  | { readonly reason: 'KVM_EXIT_EXCEPTION'; readonly ex: KvmExitException }
  | { readonly reason: 'KVM_EXIT_IO'; readonly io: KvmExitIo }
  | { readonly reason: 'KVM_EXIT_HYPERCALL'; readonly hypercall: KvmExitHypercall }
  | { readonly reason: 'KVM_EXIT_DEBUG'; readonly debug: KvmDebugExitArch }
  | { readonly reason: 'KVM_EXIT_MMIO'; readonly mmio: KvmExitMmio }
  | { readonly reason: 'KVM_EXIT_FAIL_ENTRY'; readonly fail_entry: KvmExitFailEntry }
  | { readonly reason: 'KVM_EXIT_TPR_ACCESS'; readonly tpr_access: KvmExitTprAccess }
  /** `emulation_failure` with KVM_INTERNAL_ERROR_EMULATION, else `internal`. */
  | {
      readonly reason: 'KVM_EXIT_INTERNAL_ERROR';
      readonly internal: KvmExitInternal | null;
      readonly emulation_failure: KvmExitEmulationFailure | null;
    }
  | { readonly reason: 'KVM_EXIT_SYSTEM_EVENT'; readonly system_event: KvmExitSystemEvent }
  | { readonly reason: 'KVM_EXIT_IOAPIC_EOI'; readonly eoi: KvmExitEoi }
  | { readonly reason: 'KVM_EXIT_X86_RDMSR' | 'KVM_EXIT_X86_WRMSR'; readonly msr: KvmExitMsr }
  | { readonly reason: 'KVM_EXIT_NOTIFY'; readonly notify: KvmExitNotify }
  | { readonly reason: 'KVM_EXIT_MEMORY_FAULT'; readonly memory_fault: KvmExitMemoryFault }
  | { readonly reason: 'KVM_EXIT_SNP_REQ_CERTS'; readonly snp_req_certs: KvmExitSnpReqCerts };

/** An exit of a vCPU: its data by `reason`, and all of kvm_run in `run`. */
export type VcpuExit = ExitData & { readonly run: KvmRun };

const PLAIN_BY_NUMBER: ReadonlyMap<number, (typeof PLAIN)[number]> = new Map(PLAIN.map((reason) => [KvmExit[reason], reason]));

const dataOf = (run: KvmRun): ExitData => {
  const plain = PLAIN_BY_NUMBER.get(run.exit_reason);
  if (plain !== undefined) return { reason: plain };
  switch (run.exit_reason) {
    case KvmExit.KVM_EXIT_EXCEPTION:
      return { reason: 'KVM_EXIT_EXCEPTION', ex: present(run.ex, 'ex') };
    case KvmExit.KVM_EXIT_IO:
      return { reason: 'KVM_EXIT_IO', io: present(run.io, 'io') };
    case KvmExit.KVM_EXIT_HYPERCALL:
      return { reason: 'KVM_EXIT_HYPERCALL', hypercall: present(run.hypercall, 'hypercall') };
    case KvmExit.KVM_EXIT_DEBUG:
      return { reason: 'KVM_EXIT_DEBUG', debug: present(run.debug, 'debug') };
    case KvmExit.KVM_EXIT_MMIO:
      return { reason: 'KVM_EXIT_MMIO', mmio: present(run.mmio, 'mmio') };
    case KvmExit.KVM_EXIT_FAIL_ENTRY:
      return { reason: 'KVM_EXIT_FAIL_ENTRY', fail_entry: present(run.fail_entry, 'fail_entry') };
    case KvmExit.KVM_EXIT_TPR_ACCESS:
      return { reason: 'KVM_EXIT_TPR_ACCESS', tpr_access: present(run.tpr_access, 'tpr_access') };
    case KvmExit.KVM_EXIT_INTERNAL_ERROR:
      return { reason: 'KVM_EXIT_INTERNAL_ERROR', internal: run.internal, emulation_failure: run.emulation_failure };
    case KvmExit.KVM_EXIT_SYSTEM_EVENT:
      return { reason: 'KVM_EXIT_SYSTEM_EVENT', system_event: present(run.system_event, 'system_event') };
    case KvmExit.KVM_EXIT_IOAPIC_EOI:
      return { reason: 'KVM_EXIT_IOAPIC_EOI', eoi: present(run.eoi, 'eoi') };
    case KvmExit.KVM_EXIT_X86_RDMSR:
      return { reason: 'KVM_EXIT_X86_RDMSR', msr: present(run.msr, 'msr') };
    case KvmExit.KVM_EXIT_X86_WRMSR:
      return { reason: 'KVM_EXIT_X86_WRMSR', msr: present(run.msr, 'msr') };
    case KvmExit.KVM_EXIT_NOTIFY:
      return { reason: 'KVM_EXIT_NOTIFY', notify: present(run.notify, 'notify') };
    case KvmExit.KVM_EXIT_MEMORY_FAULT:
      return { reason: 'KVM_EXIT_MEMORY_FAULT', memory_fault: present(run.memory_fault, 'memory_fault') };
    case KvmExit.KVM_EXIT_SNP_REQ_CERTS:
      return { reason: 'KVM_EXIT_SNP_REQ_CERTS', snp_req_certs: present(run.snp_req_certs, 'snp_req_certs') };
    default:
      return { reason: 'KVM_EXIT_UNKNOWN', hw: run.hw };
  }
};

/** The exit that a kvm_run page tells of. */
export const exitOf = (run: KvmRun): VcpuExit => ({ ...dataOf(run), run });
