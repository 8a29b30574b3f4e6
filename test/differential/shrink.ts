/**
 * The smallest list, found by leaving out ever smaller pieces, that still has the property (ddmin of A. Zeller's delta
 * debugging). `items` has it.
 */
export const shrinkList = async <T>(
  items: readonly T[],
  has: (items: readonly T[]) => Promise<boolean>,
): Promise<readonly T[]> => {
  let kept = items;
  for (let piece = Math.ceil(kept.length / 2); piece >= 1; ) {
    let smaller = false;
    for (let at = kept.length - piece; at > -piece; at -= piece) {
      const candidate = [...kept.slice(0, Math.max(0, at)), ...kept.slice(Math.max(0, at) + piece + Math.min(0, at))];
      if (candidate.length === kept.length || !(await has(candidate))) continue;
      kept = candidate;
      smaller = true;
    }
    if (!smaller || piece > 1) piece = piece === 1 ? 0 : Math.ceil(piece / 2);
  }
  return kept;
};
