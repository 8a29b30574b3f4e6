export interface SoakOptions {
  readonly seed: number;
  readonly count: number;
  readonly cases: number;
  readonly minutes: number;
  readonly lanes: number;
}

/** What a soak has to say, as the text of its result file. */
export interface SoakReport {
  readonly text: string;
  readonly passed: boolean;
}

/** A table of names and numbers, the greatest first. */
export const countsTable = (heading: string, counts: ReadonlyMap<string, number>): string =>
  [
    `| ${heading} | count |`,
    '| --- | ---: |',
    ...[...counts].sort(([, a], [, b]) => b - a).map(([name, count]) => `| ${name} | ${count} |`),
    '',
  ].join('\n');

/** Findings as they are, or the word that there are none. */
export const findingsText = (findings: readonly string[]): string =>
  findings.length === 0 ? 'None.\n' : findings.map((finding) => `\`\`\`\n${finding}\n\`\`\`\n`).join('\n');
