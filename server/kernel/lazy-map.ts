/** A map of which most owners never put anything into theirs: its table is made with the first entry. In order of insertion. */
export class LazyMap<K, V> implements Iterable<[K, V]> {
  private made: Map<K, V> | null = null;

  get(key: K): V | undefined {
    return this.made?.get(key);
  }

  has(key: K): boolean {
    return this.made?.has(key) ?? false;
  }

  set(key: K, value: V): void {
    this.made ??= new Map();
    this.made.set(key, value);
  }

  delete(key: K): void {
    this.made?.delete(key);
  }

  clear(): void {
    this.made = null;
  }

  values(): IterableIterator<V> {
    return (this.made ?? NOTHING).values();
  }

  [Symbol.iterator](): IterableIterator<[K, V]> {
    return (this.made ?? NOTHING).entries();
  }
}

const NOTHING: ReadonlyMap<never, never> = new Map<never, never>();
