import type { Primitive } from '../hardware/costs.js';
import type { PostMovePolicyName } from './kvm/post-move/policy.js';

/** What a simulated host is; fixed for its life but for the post-move policy. */
export interface HostConfig {
  readonly vendor: 'amd' | 'intel';
  /** Online CPUs. */
  readonly cpus: number;
  /** DRAM, bytes. */
  readonly memoryBytes: number;
  /** Everything random on this host follows from it. */
  readonly seed: string;
  readonly sev: SevConfig;
  /** What happens to the source of a move, unless its VM says otherwise. */
  readonly postMovePolicy: PostMovePolicyName;
  /** Since Linux 6.17 an eventfd belongs to one VM's irqfd (EBUSY elsewhere); false: as before. */
  readonly exclusiveIrqfd: boolean;
  /** Defects of the real kernel that are known: leaks of a move, a wrong cgroup class. */
  readonly knownUpstreamDefects: boolean;
  /** DISMANTLE_*: whether dismantling also releases irqfds, which the proposal does not name. */
  readonly dismantleReleasesIrqfds: boolean;
  /** MOVE of an SEV-SNP guest: refused, or as the code reads, which leaves `snp_context` behind. */
  readonly snpMove: 'refuse' | 'as_code';
  /** Factors on the cost of primitives. */
  readonly costFactors: Readonly<Partial<Record<Primitive, number>>>;
}

export interface SevConfig {
  readonly enabled: boolean;
  readonly es: boolean;
  readonly snp: boolean;
  /** CPUID Fn8000_001F ECX: highest ASID. */
  readonly asids: number;
  /** CPUID Fn8000_001F EDX: lowest ASID of a plain SEV guest. */
  readonly minSevAsid: number;
}

export const DEFAULT_HOST_CONFIG: HostConfig = {
  vendor: 'amd',
  cpus: 4,
  memoryBytes: 8 * 2 ** 30,
  seed: 'simkvm',
  sev: { enabled: true, es: true, snp: false, asids: 509, minSevAsid: 100 },
  postMovePolicy: 'VM_DEAD',
  exclusiveIrqfd: true,
  knownUpstreamDefects: false,
  dismantleReleasesIrqfds: false,
  snpMove: 'refuse',
  costFactors: {},
};
