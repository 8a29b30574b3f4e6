/** A set of which most owners never put anything into theirs: its table is made with the first element. In order of insertion. */
export class LazySet<T> implements Iterable<T> {
  private made: Set<T> | null = null;

  get size(): number {
    return this.made === null ? 0 : this.made.size;
  }

  has(value: T): boolean {
    return this.made?.has(value) ?? false;
  }

  add(value: T): void {
    this.made ??= new Set();
    this.made.add(value);
  }

  /** @returns true if it was there */
  delete(value: T): boolean {
    return this.made?.delete(value) ?? false;
  }

  clear(): void {
    this.made = null;
  }

  [Symbol.iterator](): IterableIterator<T> {
    return (this.made ?? NOTHING).values();
  }
}

const NOTHING: ReadonlySet<never> = new Set<never>();
