import { defineConfig } from 'vitest/config';
import { SummaryReporter } from './tools/summary-reporter.js';

const MINUTE = 60_000;

/**
 * The five rooms of `test/`, each a project of its own, so that `vitest run --project unit` runs one and a plain
 * `vitest run` runs all. Everything below `rpc` is deterministic and single-threaded, so a worker for each of two cores
 * is the right size: more workers would only make daemons of the e2e tests wait for each other.
 */
const room = (name: string, minutes: number) => ({
  extends: true as const,
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    // For what does not end at all: a shorter time would be an assertion about this machine.
    testTimeout: minutes * MINUTE,
    hookTimeout: minutes * MINUTE,
    expect: { poll: { timeout: (minutes * MINUTE) / 2, interval: 50 } },
  },
});

export default defineConfig({
  test: {
    pool: 'threads',
    maxWorkers: 2,
    reporters: ['default', new SummaryReporter()],
    projects: [room('unit', 2), room('conformance', 5), room('differential', 5), room('simulation', 10), room('e2e', 10)],
  },
});
