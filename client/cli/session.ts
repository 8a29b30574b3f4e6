import { DEFAULT_TARGET, SimKvm } from '../sim-kvm.js';
import { describeFailure, exitCodeOf } from './failure.js';
import { json } from './output.js';

/** The options that every command has. */
export interface GlobalOptions {
  readonly target: string;
  readonly json?: boolean;
}

export { DEFAULT_TARGET };

/** Where a command writes, so that a test can read it. */
export interface Console {
  out(text: string): void;
  error(text: string): void;
  exitCode(code: number): void;
}

export const processConsole: Console = {
  out: (text) => void process.stdout.write(`${text}\n`),
  error: (text) => void process.stderr.write(`${text}\n`),
  exitCode: (code) => {
    process.exitCode = code;
  },
};

/**
 * Runs a command against the host that `--target` names, and prints what it gives: as JSON, or as `render` shows it.
 * A failure is printed for people, and is the program's exit code.
 */
export const runCommand = async <T>(
  { target, json: asJson }: GlobalOptions,
  console: Console,
  command: (simkvm: SimKvm) => Promise<T>,
  render: (value: T) => string,
): Promise<void> => {
  try {
    await using simkvm = await SimKvm.connect(target, { timeoutMs: 5_000 });
    const value = await command(simkvm);
    console.out(asJson ? json(value) : render(value));
  } catch (error) {
    console.error(describeFailure(error));
    console.exitCode(exitCodeOf(error));
  }
};
