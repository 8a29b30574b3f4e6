import { defineConfig } from 'vitest/config';
import { SummaryReporter } from './tools/summary-reporter.js';

/**
 * The five rooms of `test/`, each a project of its own, so that `vitest run --project unit` runs one and a plain
 * `vitest run` runs all. Everything below `rpc` is deterministic and single-threaded, so a worker for each of two cores
 * is the right size: more workers would only make daemons of the e2e tests wait for each other.
 */
const room = (name: string, testTimeout: number) => ({
  extends: true as const,
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    testTimeout,
    hookTimeout: testTimeout,
    // What is waited for comes sooner or later; the second that vitest gives it would be an assertion about this machine.
    expect: { poll: { timeout: testTimeout / 2, interval: 50 } },
  },
});

export default defineConfig({
  test: {
    pool: 'threads',
    maxWorkers: 2,
    reporters: ['default', new SummaryReporter()],
    projects: [
      room('unit', 30_000),
      room('conformance', 120_000),
      room('differential', 120_000),
      room('simulation', 300_000),
      room('e2e', 300_000),
    ],
  },
});
