import { Failure } from '../failure.js';
import type { Process } from '../process/process.js';

/** The resources of the misc controller that KVM charges: encrypted guests by class of ASID (SNP counts as sev_es). */
export type MiscResource = 'sev' | 'sev_es';

const limitReached = ({ name }: MiscCgroup, resource: MiscResource): Failure =>
  new Failure('EBUSY', 'MISC_CGROUP_LIMIT', 'misc_cg_try_charge', { cgroup: name, resource });

/** `struct misc_cg`: a group's use of ASIDs, limited by `misc.max` here and by that of every group above it. */
export class MiscCgroup {
  private readonly used: Record<MiscResource, number> = { sev: 0, sev_es: 0 };
  /** `misc.max`; infinite where absent. */
  readonly max: Partial<Record<MiscResource, number>> = {};
  /** `misc.events`: charges that a limit has refused. */
  events = 0;

  constructor(
    readonly name: string,
    readonly parent: MiscCgroup | null,
    /** `misc.capacity`: ASIDs of each class. */
    readonly capacity: Readonly<Record<MiscResource, number>>,
  ) {}

  /** `misc.current`. */
  current(resource: MiscResource): number {
    return this.used[resource];
  }

  /** `misc_cg_try_charge` of one unit: EBUSY when a limit of this group or one above would be passed. */
  tryCharge(resource: MiscResource): Failure | null {
    const full = this.firstFull(resource);
    if (full !== null) {
      full.events++;
      return limitReached(full, resource);
    }
    for (const group of this.lineage()) group.used[resource]++;
    return null;
  }

  /** What a charge would be refused with. Nothing is charged, and no event counted. */
  whyRefused(resource: MiscResource): Failure | null {
    const full = this.firstFull(resource);
    return full === null ? null : limitReached(full, resource);
  }

  /** `misc_cg_uncharge`. More than was charged is a warning in the kernel, and stays at zero here as there. */
  uncharge(resource: MiscResource): void {
    for (const group of this.lineage()) group.used[resource] = Math.max(0, group.used[resource] - 1);
  }

  private firstFull(resource: MiscResource): MiscCgroup | null {
    for (const group of this.lineage()) {
      const limit = Math.min(group.max[resource] ?? Number.POSITIVE_INFINITY, group.capacity[resource]);
      if (group.used[resource] >= limit) return group;
    }
    return null;
  }

  private *lineage(): Generator<MiscCgroup> {
    for (let group: MiscCgroup | null = this; group !== null; group = group.parent) yield group;
  }
}

/** The misc controller of a host: which group each process belongs to. */
export class MiscController {
  readonly root: MiscCgroup;
  private readonly groups = new WeakMap<Process, MiscCgroup>();

  constructor(capacity: Readonly<Record<MiscResource, number>>) {
    this.root = new MiscCgroup('/', null, capacity);
  }

  /** `get_current_misc_cg`: a process is in its parent's group until it is attached to another. */
  of(process: Process): MiscCgroup {
    return this.groups.get(process) ?? (process.parent === null ? this.root : this.of(process.parent));
  }

  create(name: string, parent: MiscCgroup = this.root): MiscCgroup {
    return new MiscCgroup(name, parent, this.root.capacity);
  }

  /** A write to `cgroup.procs`; what the process has charged before stays where it is. */
  attach(process: Process, group: MiscCgroup): void {
    this.groups.set(process, group);
  }
}
