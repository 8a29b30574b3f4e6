/** One line of the report: a figure of ours, measured in the same run as its denominator. */
export interface Figure {
  readonly name: string;
  readonly ours: string;
  /** What it is compared with, and that one's figure. */
  readonly baseline: string;
  readonly ratio: number;
  /** What the project has set itself; it is printed beside the ratio, and not asserted: a busy machine proves nothing. */
  readonly target: string;
}

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const [below = Number.NaN, above = Number.NaN] = [sorted[Math.ceil(sorted.length / 2) - 1], sorted[middle]];
  return (below + above) / 2;
};

/** Two things measured in turns. */
export interface Pair {
  readonly ours: number;
  readonly baseline: number;
  /** Median of the ratios of neighbours: what else the machine does meanwhile falls on both. */
  readonly ratio: number;
}

/** Measures both by turns, a different one first each time. One round before is thrown away. */
export const alternate = async (
  rounds: number,
  measureOurs: () => Promise<number>,
  measureBaseline: () => Promise<number>,
): Promise<Pair> => {
  const pairs: { ours: number; baseline: number }[] = [];
  for (let round = 0; round <= rounds; round++) {
    const oursFirst = round % 2 === 0;
    const early = oursFirst ? await measureOurs() : await measureBaseline();
    const late = oursFirst ? await measureBaseline() : await measureOurs();
    if (round > 0) pairs.push(oursFirst ? { ours: early, baseline: late } : { ours: late, baseline: early });
  }
  return {
    ours: median(pairs.map(({ ours }) => ours)),
    baseline: median(pairs.map(({ baseline }) => baseline)),
    ratio: median(pairs.map(({ ours, baseline }) => ours / baseline)),
  };
};
