/** One thing that a verification has looked at. */
export interface Check {
  /** What was asked, as a sentence that is true where `ok` is. */
  readonly name: string;
  readonly ok: boolean;
  /** What was found, where that is not all said. */
  readonly detail?: string;
}

/** The outcome of a verification: it holds if every check does. */
export interface Verdict {
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

export const verdict = (checks: readonly Check[]): Verdict => ({ ok: checks.every(({ ok }) => ok), checks });
