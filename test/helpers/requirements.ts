import { execFileSync } from 'node:child_process';
import { accessSync, closeSync, constants, existsSync, openSync } from 'node:fs';
import { resolve } from 'node:path';
import { threadId } from 'node:worker_threads';
import { beforeEach } from 'vitest';

/** Folder of the public test vectors, which are read from there and not copied. */
export const VECTORS = resolve(process.env.SIMKVM_VECTORS ?? '../shared/vectors');

const succeeds = (action: () => void): boolean => {
  try {
    action();
    return true;
  } catch {
    return false;
  }
};

const run = (program: string, ...args: readonly string[]): void => {
  execFileSync(program, args, { stdio: 'ignore' });
};

/** Whether something can be done in a network namespace that is made for it. */
const inNamespace = (action: (name: string) => void): boolean => {
  const name = `simkvm-probe-${process.pid}-${threadId}`;
  return succeeds(() => {
    run('ip', 'netns', 'add', name);
    try {
      action(name);
    } finally {
      run('ip', 'netns', 'delete', name);
    }
  });
};

/** What a machine may lack, and how to find out. */
const REQUIREMENTS = {
  vectors: { lacking: `no test vectors in ${VECTORS}`, there: () => existsSync(VECTORS) },
  kvm: {
    lacking: '/dev/kvm cannot be opened here',
    there: () =>
      succeeds(() => {
        accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
        closeSync(openSync('/dev/kvm', 'r+'));
      }),
  },
  gcc: {
    lacking: 'there is no gcc here',
    there: () => succeeds(() => execFileSync('gcc', ['--version'], { stdio: 'ignore' })),
  },
  netns: {
    lacking: 'network namespaces cannot be made here',
    there: () => inNamespace((name) => run('ip', '-n', name, 'link', 'add', 'near', 'type', 'veth', 'peer', 'name', 'far')),
  },
  netem: {
    lacking: 'this kernel has no netem',
    there: () => inNamespace((name) => run('tc', '-n', name, 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '1ms')),
  },
} as const;

export type Requirement = keyof typeof REQUIREMENTS;

const known = new Map<Requirement, boolean>();

/** Whether this machine has it; asked once. */
const available = (requirement: Requirement): boolean => {
  const before = known.get(requirement);
  if (before !== undefined) return before;
  const there = REQUIREMENTS[requirement].there();
  known.set(requirement, there);
  return there;
};

/** Requirements whose absence is a failure: `SIMKVM_REQUIRE=vectors,kvm,netns`. */
const enforced = (requirement: Requirement): boolean => (process.env.SIMKVM_REQUIRE ?? '').split(',').includes(requirement);

/**
 * Skips the tests of the surrounding `describe` where the machine lacks something, and says so at the end of the run;
 * fails them where SIMKVM_REQUIRE asks for it.
 * @param purpose what cannot be tested without it
 */
export const requires = (requirement: Requirement, purpose: string): void => {
  beforeEach(({ skip }) => {
    if (available(requirement)) return;
    const { lacking } = REQUIREMENTS[requirement];
    if (enforced(requirement)) throw new Error(`SIMKVM_REQUIRE asks for '${requirement}', but ${lacking} (${purpose})`);
    skip(`${lacking} (${purpose})`);
  });
};
