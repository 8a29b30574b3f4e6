import { PostMovePolicy } from '../../../gen/messages.js';
import { POST_MOVE_POLICIES, type PostMovePolicyName } from '../../kernel/kvm/post-move/policy.js';

/** The contract's number of a policy. */
export const policyNumber = (name: PostMovePolicyName): number => PostMovePolicy[`POST_MOVE_POLICY_${name}`];

/** The policy of a number; undefined for one that is none. */
export const policyName = (number: number): PostMovePolicyName | undefined =>
  POST_MOVE_POLICIES.find((name) => policyNumber(name) === number);
