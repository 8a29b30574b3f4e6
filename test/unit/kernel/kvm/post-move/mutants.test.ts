import { describe, expect, it } from 'vitest';
import { postMovePolicy } from '../../../../../server/kernel/kvm/post-move/index.js';
import { POST_MOVE_POLICIES, type PostMovePolicy } from '../../../../../server/kernel/kvm/post-move/policy.js';
import { POLICY_MUTANTS } from '../../../../mutants/post-move-policies.js';
import { POLICY_RULES, type Rule } from './policy-rules.js';

const breaks = ({ check }: Rule, policy: PostMovePolicy): boolean => {
  try {
    check(policy);
    return false;
  } catch {
    return true;
  }
};

/**
 * The rules of the policies, tested themselves: for each rule there is a policy that breaks it, and the rule's check must
 * say so.
 */
for (const name of POST_MOVE_POLICIES)
  describe(`a mutant of ${name}`, () => {
    const rules = POLICY_RULES[name];
    const mutants = POLICY_MUTANTS[name];

    it('exists for every rule', () => {
      const mutated = new Set(mutants.map(({ rule }) => rule));
      expect(rules.map((rule) => rule.name).filter((rule) => !mutated.has(rule))).toEqual([]);
      expect([...mutated].filter((rule) => !rules.some((known) => known.name === rule))).toEqual([]);
    });

    for (const [index, { rule: wanted, mutate }] of mutants.entries())
      it(`${index + 1} breaks the rule '${wanted}'`, () => {
        const rule = rules.find((known) => known.name === wanted);
        expect(rule !== undefined && breaks(rule, mutate(postMovePolicy(name)))).toBe(true);
      });

    const other = name === 'VM_DEAD' ? 'NOT_DEAD' : 'VM_DEAD';
    it(`that behaves as ${other} breaks at least one`, () => {
      const disguised = { ...postMovePolicy(other), name };
      expect(rules.filter((rule) => breaks(rule, disguised)).map((rule) => rule.name)).not.toEqual([]);
    });
  });
