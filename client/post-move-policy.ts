import { PostMovePolicy } from '../gen/messages.js';

/** What may happen to a source VM when its encryption context moves away, in the order of the contract. */
export const POST_MOVE_POLICIES = [
  'VM_DEAD',
  'NOT_DEAD',
  'ENC_DEAD',
  'VM_MOVED',
  'DISMANTLE_IOCTL',
  'DISMANTLE_ON_MOVE',
  'DISMANTLE_ASYNC',
  'SUCCEED_SILENTLY',
  'BUGGED_ONLY',
  'VCPU_DEAD',
] as const;

/** The name of a post-move policy. */
export type PostMovePolicyName = (typeof POST_MOVE_POLICIES)[number];

/** The number that the contract gives it. */
export const policyNumber = (name: PostMovePolicyName): number => PostMovePolicy[`POST_MOVE_POLICY_${name}` as const];

/** Its name. @throws RangeError if the number is none of theirs */
export const policyName = (policy: number): PostMovePolicyName => {
  const name = POST_MOVE_POLICIES.find((candidate) => policyNumber(candidate) === policy);
  if (name === undefined) throw new RangeError(`${policy} is no post-move policy`);
  return name;
};
