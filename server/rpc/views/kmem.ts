import type { KmemInit } from '../../../gen/messages.js';
import type { KmemOwner } from '../../kernel/kmem.js';

/** Both columns of an owner's kernel memory, by type. */
export const kmemView = (owner: KmemOwner): KmemInit[] => sumView([owner]);

/** The same, summed over several owners. */
export const sumView = (owners: Iterable<KmemOwner>): KmemInit[] => {
  const rows = new Map<string, { type: string; reachable_bytes: number; charged_bytes: number }>();
  const row = (type: string) => {
    const known = rows.get(type) ?? { type, reachable_bytes: 0, charged_bytes: 0 };
    rows.set(type, known);
    return known;
  };
  for (const owner of owners) {
    for (const [type, bytes] of owner.reachableByType) row(type).reachable_bytes += bytes;
    for (const [type, bytes] of owner.chargedByType) row(type).charged_bytes += bytes;
  }
  return [...rows.values()].sort((a, b) => (a.type < b.type ? -1 : 1));
};
