import type { JsonObject } from '../../conformance/json.js';
import { Random } from '../random.js';
import { DIRTY_LOG_MOVES } from './dirty-logs.js';
import { GUEST_MEMFD_MOVES } from './guest-memfds.js';
import { GUEST_PROGRAM_MOVES } from './guest-programs.js';
import { INTERRUPT_MOVES } from './interrupts.js';
import { IOEVENTFD_MOVES } from './ioeventfds.js';
import { MEMSLOT_MOVES } from './memslots.js';
import { OTHER_MOVES } from './others.js';
import { VCPU_MOVES } from './vcpus.js';
import { type Move, World } from './world.js';

/** What a sequence is mostly about. */
export const FOCUSES = ['memslot', 'ioeventfd', 'vcpu', 'gmem', 'irq', 'run', 'dirty', 'all'] as const;
export type Focus = (typeof FOCUSES)[number];

const OPS_MAX = 60;
/** How much more often a move of the focus is made. */
const EMPHASIS = 5;

interface WeightedMove {
  readonly move: Move;
  readonly weight: number;
  readonly focuses: readonly Focus[];
}

const moves = (group: Readonly<Record<string, Move>>, weight: number, ...focuses: Focus[]): WeightedMove[] =>
  Object.values(group).map((move) => ({ move, weight: weight / Object.keys(group).length, focuses }));

const MOVES: readonly WeightedMove[] = [
  ...moves({ setSlot: MEMSLOT_MOVES.setSlot }, 9, 'memslot', 'dirty'),
  ...moves({ deleteSlot: MEMSLOT_MOVES.deleteSlot, strangeSlot: MEMSLOT_MOVES.strangeSlot }, 3, 'memslot'),
  ...moves(GUEST_MEMFD_MOVES, 3, 'gmem'),
  ...moves(IOEVENTFD_MOVES, 8, 'ioeventfd'),
  ...moves({ create: VCPU_MOVES.create }, 3, 'run', 'vcpu', 'dirty'),
  ...moves(VCPU_MOVES, 4, 'vcpu'),
  ...moves(INTERRUPT_MOVES, 2, 'irq'),
  ...moves(DIRTY_LOG_MOVES, 3, 'dirty'),
  ...moves({ program: GUEST_PROGRAM_MOVES.program }, 3, 'run', 'dirty', 'ioeventfd'),
  ...moves({ readBacking: GUEST_PROGRAM_MOVES.readBacking }, 1, 'run'),
  ...moves(OTHER_MOVES, 3, 'all'),
];

/** A sequence of at most 60 calls. The same seed and focus give the same one. */
export const generateSequence = (seed: number, focus: Focus): JsonObject[] => {
  const random = new Random(seed);
  const world = new World(random);
  const weighted = MOVES.map(({ move, weight, focuses }): readonly [number, Move] => [
    focuses.includes(focus) ? weight * EMPHASIS : weight,
    move,
  ]);
  const length = random.chance(0.3) ? OPS_MAX : 10 + random.below(OPS_MAX - 9);
  world.add('open', { as: 'sys' });
  world.createVm();
  while (world.ops.length < length) random.weighted(weighted)(world, random.pick(world.vms));
  return world.ops.slice(0, length);
};
