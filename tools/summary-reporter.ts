import type { Reporter, TestCase, TestModule } from 'vitest/node';

const reasonOf = (test: TestCase): string => {
  const result = test.result();
  return result.state === 'skipped' ? (result.note ?? 'no reason given') : '';
};

/** Ends a run with the tests that were skipped, grouped by reason, and with one line of counts. */
export class SummaryReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const count = (state: string): number => tests.filter((test) => test.result().state === state).length;
    // A file that cannot be loaded has no tests, and an error outside of tests has none either.
    const broken = modules.filter((module) => module.errors().length > 0).length + unhandledErrors.length;
    const skipped = tests.filter((test) => test.result().state === 'skipped');
    for (const [reason, names] of grouped(skipped)) {
      process.stdout.write(`\nSkipped: ${reason}\n${names.map((name) => `  ${name}\n`).join('')}`);
    }
    process.stdout.write(`\n${count('passed')} passed, ${count('failed') + broken} failed, ${skipped.length} skipped\n`);
  }
}

const grouped = (skipped: readonly TestCase[]): Map<string, string[]> => {
  const groups = new Map<string, string[]>();
  for (const test of skipped) {
    const reason = reasonOf(test);
    groups.set(reason, [...(groups.get(reason) ?? []), `${test.module.relativeModuleId}: ${test.fullName}`]);
  }
  return groups;
};
