import { EXIT } from '../failure.js';
import { json } from '../output.js';
import type { Console, GlobalOptions } from '../session.js';

/** What a command on files has found, and whether that is what its caller hopes for: the program's exit code says so. */
export interface Finding<T> {
  readonly value: T;
  readonly ok: boolean;
}

/** Runs a command that needs no host. What is wrong with a file is said as RangeError. */
export const runLocal = async <T>(
  { json: asJson }: GlobalOptions,
  console: Console,
  command: () => Finding<T> | Promise<Finding<T>>,
  render: (value: T) => string,
): Promise<void> => {
  try {
    const { value, ok } = await command();
    console.out(asJson ? json(value) : render(value));
    if (!ok) console.exitCode(EXIT.REFUSED);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    console.error(`simkvm: ${error.message}`);
    console.exitCode(EXIT.REFUSED);
  }
};
