import { runProgram } from '../../client/cli/program.js';

/** What a run of `simkvm` printed, and how it ended. */
export interface CliResult {
  out: string;
  error: string;
  code: number;
}

/** Runs `simkvm` in this process, with no terminal. */
export const runSimkvm = async (...args: string[]): Promise<CliResult> => {
  const result: CliResult = { out: '', error: '', code: 0 };
  await runProgram(args, {
    out: (text) => {
      result.out += text;
    },
    error: (text) => {
      result.error += text;
    },
    status: null,
    exitCode: (code) => {
      result.code = code;
    },
  });
  return result;
};
