import { LazyMap } from './lazy-map.js';

/**
 * Kernel memory accounting. Every kernel object is charged when it is made, by the name of its structure or slab.
 * There are two columns: what was charged to an owner and is still alive, wherever it may be now (the memory cgroup's
 * view), and what can be reached from an object (what freeing it would give back).
 */
export class KmemOwner {
  private readonly charged = new Map<string, number>();
  /** Bytes that others have paid for and that hang here, less those of its own that hang on others. */
  private readonly moved = new LazyMap<string, number>();

  /** @param name for reports: `vm 3`, `process 12` */
  constructor(readonly name: string) {}

  /** Bytes alive that were charged to this owner, by type. */
  get chargedByType(): ReadonlyMap<string, number> {
    return this.charged;
  }

  /** Bytes that hang on this object now, by type. */
  get reachableByType(): ReadonlyMap<string, number> {
    const reachable = new Map(this.charged);
    for (const [type] of this.moved) setUnlessZero(reachable, type, this.reachable(type));
    return reachable;
  }

  get chargedBytes(): number {
    return sum(this.charged.values());
  }

  get reachableBytes(): number {
    return sum(this.charged.values()) + sum(this.moved.values());
  }

  /** Charges `bytes` of `type` (a structure's or slab's name) to this owner; it is reachable from it until moved. */
  charge(type: string, bytes: number): KmemCharge {
    return new KmemCharge(this, type, bytes);
  }

  private reachable(type: string): number {
    return (this.charged.get(type) ?? 0) + (this.moved.get(type) ?? 0);
  }

  /** For `KmemCharge` only: this owner pays for so many bytes more, which `holder` can reach. */
  add(type: string, bytes: number, holder: KmemOwner): void {
    const total = (this.charged.get(type) ?? 0) + bytes;
    if (total < 0) throw new Error(`${this.name}: ${type} charged below zero`);
    setUnlessZero(this.charged, type, total);
    this.move(type, bytes, holder);
  }

  /** For `KmemCharge` only: bytes that could be reached from here hang on `holder` now. */
  move(type: string, bytes: number, holder: KmemOwner): void {
    if (holder === this) return;
    setUnlessZero(this.moved, type, (this.moved.get(type) ?? 0) - bytes);
    setUnlessZero(holder.moved, type, (holder.moved.get(type) ?? 0) + bytes);
    for (const owner of [this, holder])
      if (owner.reachable(type) < 0) throw new Error(`${owner.name}: ${type} reachable below zero`);
  }
}

const setUnlessZero = (map: Map<string, number> | LazyMap<string, number>, type: string, bytes: number): void => {
  if (bytes === 0) map.delete(type);
  else map.set(type, bytes);
};

const sum = (numbers: Iterable<number>): number => {
  let total = 0;
  for (const bytes of numbers) total += bytes;
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
    owner.add(type, size, owner);
  }

  get bytes(): number {
    return this.size;
  }

  /** Grows or shrinks, as a cache of page-table pages does. */
  resize(bytes: number): void {
    this.owner.add(this.type, bytes - this.size, this.holder);
    this.size = bytes;
  }

  /** Hangs on another object from now on; who paid for it does not change. */
  moveTo(holder: KmemOwner): void {
    this.holder.move(this.type, this.size, holder);
    this.holder = holder;
  }

  release(): void {
    if (!this.alive) throw new Error(`${this.type} released twice`);
    this.alive = false;
    this.owner.add(this.type, -this.size, this.holder);
  }
}
