import { expect, it } from 'vitest';
import { POST_MOVE_POLICIES, policyName, policyNumber } from '../../../client/post-move-policy.js';
import { PostMovePolicy } from '../../../gen/messages.js';

it('names every policy of the contract, in its order', () => {
  const names = Object.keys(PostMovePolicy).flatMap((name) => /^POST_MOVE_POLICY_(.*)/.exec(name)?.[1] ?? []);
  expect(['UNSPECIFIED', ...POST_MOVE_POLICIES]).toEqual(names);
});

it('turns names into numbers and back', () => {
  for (const name of POST_MOVE_POLICIES) expect(policyName(policyNumber(name))).toBe(name);
  expect(() => policyName(0)).toThrow(RangeError);
});
