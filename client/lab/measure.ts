import type { Finding, GetCostsResponse, Host } from '../index.js';
import { FindingDomain } from '../index.js';
import { isGone } from './teardown.js';

/** Kernel memory that a VM holds, at one point of an experiment, by type. */
export interface Held {
  readonly point: string;
  /** Bytes that can be reached from the VM. */
  readonly reachable: Readonly<Record<string, number>>;
  /** Bytes that are charged to it, wherever they are by now. */
  readonly charged: Readonly<Record<string, number>>;
}

/** Bytes of all types. */
export const totalOf = (bytes: Readonly<Record<string, number>>): number =>
  Object.values(bytes).reduce((sum, count) => sum + count, 0);

/** Looks at what the kernel holds for a VM; nothing if it has been freed. */
export const sampleHeld = async (host: Host, vmId: number, point: string): Promise<Held> => {
  const reachable: Record<string, number> = {};
  const charged: Record<string, number> = {};
  try {
    const { kmem } = await host.getVm(vmId);
    for (const { type, reachable_bytes, charged_bytes } of kmem) {
      reachable[type] = Number(reachable_bytes);
      charged[type] = Number(charged_bytes);
    }
  } catch (error) {
    if (!isGone(error)) throw error;
  }
  return { point, reachable, charged };
};

/** Work that a host has done between two points: primitives with their number. */
export interface Work {
  readonly counts: Readonly<Record<string, number>>;
  /** By the host's cost model. */
  readonly nanoseconds: number;
  readonly nanosecondsEach: Readonly<Record<string, number>>;
}

/** Measures work from now on. */
export const startMeasuring = async (host: Host): Promise<() => Promise<Work>> => {
  const before = await host.getCosts();
  return async () => workBetween(before, await host.getCosts());
};

const workBetween = (before: GetCostsResponse, after: GetCostsResponse): Work => {
  const earlier = new Map(before.primitives.map(({ name, count }) => [name, count]));
  const counts: Record<string, number> = {};
  const nanosecondsEach: Record<string, number> = {};
  let nanoseconds = 0;
  for (const { name, count, nanoseconds_each } of after.primitives) {
    const more = Number(count - (earlier.get(name) ?? 0n));
    if (more === 0) continue;
    counts[name] = more;
    nanosecondsEach[name] = Number(nanoseconds_each);
    nanoseconds += more * Number(nanoseconds_each);
  }
  return { counts, nanoseconds, nanosecondsEach };
};

/** Findings of one kind. */
export interface FindingCount {
  readonly domain: 'kernel' | 'guest';
  readonly kind: string;
  readonly count: number;
  /** One of them. */
  readonly message: string;
  readonly call: string;
}

const domainOf = ({ domain }: Finding): 'kernel' | 'guest' =>
  domain === FindingDomain.FINDING_DOMAIN_KERNEL ? 'kernel' : 'guest';

/** Collects findings from now on, by kind. @param vmIds only about these VMs; left out: all */
export const startCollecting = async (host: Host, vmIds?: readonly number[]): Promise<() => Promise<FindingCount[]>> => {
  const afterFindingId = (await host.listFindings()).findings.at(-1)?.finding_id ?? 0n;
  return async () => {
    const kinds = new Map<string, FindingCount>();
    for (const finding of (await host.listFindings({ afterFindingId })).findings) {
      if (vmIds !== undefined && !vmIds.includes(finding.vm_id)) continue;
      const { kind, message, call } = finding;
      const first = kinds.get(kind);
      kinds.set(kind, {
        domain: domainOf(finding),
        kind,
        count: (first?.count ?? 0) + 1,
        message: first?.message ?? message,
        call,
      });
    }
    return [...kinds.values()];
  };
};
