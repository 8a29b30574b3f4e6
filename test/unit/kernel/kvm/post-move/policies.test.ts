import { describe, expect, it } from 'vitest';
import { postMovePolicy } from '../../../../../server/kernel/kvm/post-move/index.js';
import { POST_MOVE_POLICIES } from '../../../../../server/kernel/kvm/post-move/policy.js';
import { POLICY_RULES } from './policy-rules.js';

for (const name of POST_MOVE_POLICIES)
  describe(`after a move under ${name}`, () => {
    it('is found by its name', () => expect(postMovePolicy(name).name).toBe(name));
    for (const { name: rule, check } of POLICY_RULES[name]) it(rule, () => check(postMovePolicy(name)));
  });
