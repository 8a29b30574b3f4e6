/** What a counter of the 8254 shows after `cycles` of its clock, by mode (`pit_get_count`, `pit_get_out`). */

/** The count; binary whatever the BCD bit says, as in KVM. */
export const pitCount = (mode: number, count: number, cycles: bigint): number => {
  const reload = BigInt(count);
  if (reload === 0n) return 0;
  switch (mode) {
    case 0:
    case 1:
    case 4:
    case 5:
      return Number(BigInt.asUintN(16, reload - cycles));
    case 3:
      return Number(reload - ((2n * cycles) % reload));
    default:
      return Number(reload - (cycles % reload));
  }
};

/** The OUT pin. */
export const pitOutput = (mode: number, count: number, cycles: bigint): boolean => {
  const reload = BigInt(count);
  if (reload === 0n) return false;
  switch (mode) {
    case 1:
      return cycles < reload;
    case 2:
      return cycles % reload === 0n && cycles !== 0n;
    case 3:
      return cycles % reload < (reload + 1n) / 2n;
    case 4:
    case 5:
      return cycles === reload;
    default:
      return cycles >= reload;
  }
};
