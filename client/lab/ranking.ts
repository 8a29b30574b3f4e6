import type { PostMovePolicyName } from '../index.js';
import type { Row } from './experiment.js';

/** A policy with its price in simulated time, nanoseconds. */
export interface Ranked {
  readonly policy: PostMovePolicyName;
  readonly blackoutNs: number;
}

/** Whether the order of policies by blackout depends on what single primitives cost. */
export interface Ranking {
  /** Shortest blackout first; the same blackout keeps the order of the policies. */
  readonly order: readonly Ranked[];
  /** Primitives of which half or double the cost gives another order. None: the ranking holds. */
  readonly overturnedBy: readonly { readonly primitive: string; readonly factor: number }[];
}

const FACTORS = [0.5, 2] as const;

/** The order of policies by blackout, and what becomes of it when the cost of each primitive is halved and doubled. */
export const rankByBlackout = (rows: readonly Row[]): Ranking => {
  const moved = rows.flatMap(({ subject, move }) =>
    subject.kind === 'move' && move !== null ? [{ policy: subject.policy, move }] : [],
  );
  const each = new Map(moved.flatMap(({ move }) => Object.entries(move.work.nanosecondsEach)));
  const rank = (cost: (primitive: string) => number): Ranked[] => {
    const priced = moved.map(({ policy, move }) => ({
      policy,
      blackoutNs: Object.entries(move.blackout).reduce((sum, [primitive, count]) => sum + count * cost(primitive), 0),
    }));
    return priced.sort((a, b) => a.blackoutNs - b.blackoutNs);
  };
  const cost = (primitive: string): number => each.get(primitive) ?? 0;
  const order = rank(cost);
  const names = (ranked: readonly Ranked[]): string => ranked.map(({ policy }) => policy).join();
  const overturnedBy = [...each.keys()].flatMap((primitive) =>
    FACTORS.filter((factor) => {
      const scaled = rank((name) => cost(name) * (name === primitive ? factor : 1));
      return names(scaled) !== names(order);
    }).map((factor) => ({ primitive, factor })),
  );
  return { order, overturnedBy };
};
