/**
 * Kernel memory accounting. Every kernel object is charged when it is made, by the name of its structure or slab.
 * There are two columns: what was charged to an owner and is still alive, wherever it may be now (the memory cgroup's
 * view), and what can be reached from an object (what freeing it would give back).
 */
export class KmemOwner {
  private readonly charged = new Map<string, number>();
  private readonly reachable = new Map<string, number>();

  /** @param name for reports: `vm 3`, `process 12` */
  constructor(readonly name: string) {}

  /** Bytes alive that were charged to this owner, by type. */
  get chargedByType(): ReadonlyMap<string, number> {
    return this.charged;
  }

  /** Bytes that hang on this object now, by type. */
  get reachableByType(): ReadonlyMap<string, number> {
    return this.reachable;
  }

  get chargedBytes(): number {
    return sum(this.charged);
  }

  get reachableBytes(): number {
    return sum(this.reachable);
  }

  /** Charges `bytes` of `type` (a structure's or slab's name) to this owner; it is reachable from it until moved. */
  charge(type: string, bytes: number): KmemCharge {
    return new KmemCharge(this, type, bytes);
  }

  /** For `KmemCharge` only. */
  add(column: 'charged' | 'reachable', type: string, bytes: number): void {
    const map = this[column];
    const total = (map.get(type) ?? 0) + bytes;
    if (total < 0) throw new Error(`${this.name}: ${type} ${column} below zero`);
    if (total === 0) map.delete(type);
    else map.set(type, total);
  }
}

const sum = (map: ReadonlyMap<string, number>): number => {
  let total = 0;
  for (const bytes of map.values()) total += bytes;
  return total;
};

/** One allocation, from the moment it is charged until it is released. */
export class KmemCharge {
  private holder: KmemOwner;
  private alive = true;

  constructor(
    private readonly owner: KmemOwner,
    readonly type: string,
    private size: number,
  ) {
    this.holder = owner;
    owner.add('charged', type, size);
    owner.add('reachable', type, size);
  }

  get bytes(): number {
    return this.size;
  }

  /** Grows or shrinks, as a cache of page-table pages does. */
  resize(bytes: number): void {
    this.owner.add('charged', this.type, bytes - this.size);
    this.holder.add('reachable', this.type, bytes - this.size);
    this.size = bytes;
  }

  /** Hangs on another object from now on; who paid for it does not change. */
  moveTo(holder: KmemOwner): void {
    this.holder.add('reachable', this.type, -this.size);
    this.holder = holder;
    holder.add('reachable', this.type, this.size);
  }

  release(): void {
    if (!this.alive) throw new Error(`${this.type} released twice`);
    this.alive = false;
    this.owner.add('charged', this.type, -this.size);
    this.holder.add('reachable', this.type, -this.size);
  }
}
