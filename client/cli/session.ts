import { readFile } from 'node:fs/promises';
import { InvalidArgumentError } from 'commander';
import { DEFAULT_TARGET, SimKvm } from '../sim-kvm.js';
import type { ClientTls } from '../transports/tls.js';
import { describeFailure, exitCodeOf } from './failure.js';
import { json } from './output.js';
import { type StatusLine, terminalStatusLine } from './status-line.js';

/** The options that every command has. */
export interface GlobalOptions {
  readonly target: string;
  readonly json?: boolean;
  /** Files, PEM. */
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
}

export { DEFAULT_TARGET };

const CONNECT_TIMEOUT_MS = 5_000;

export const hostAndPort = (text: string): string => {
  if (/^(\[[0-9a-fA-F:]+\]|[^:[\]]+):\d{1,5}$/.test(text)) return text;
  throw new InvalidArgumentError(`'${text}' is not HOST:PORT, for example ${DEFAULT_TARGET}.`);
};

/** The host's init process, which makes the calls of those that name no process. */
export const INIT = '1';

export const wholeNumber = (text: string): number => {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError(`'${text}' is no whole number.`);
};

/** Where a command writes, so that a test can read it. */
export interface Console {
  out(text: string): void;
  error(text: string): void;
  exitCode(code: number): void;
  /** Where progress is shown; null: nobody looks. */
  readonly status: StatusLine | null;
}

export const processConsole: Console = {
  out: (text) => void process.stdout.write(`${text}\n`),
  error: (text) => void process.stderr.write(`${text}\n`),
  exitCode: (code) => {
    process.exitCode = code;
  },
  status: terminalStatusLine(process.stderr),
};

/** @throws Error if only some of the three files are named */
const tlsOf = async ({ tlsCa, tlsCert, tlsKey }: GlobalOptions): Promise<ClientTls | undefined> => {
  if (tlsCa === undefined && tlsCert === undefined && tlsKey === undefined) return undefined;
  if (tlsCa === undefined || tlsCert === undefined || tlsKey === undefined)
    throw new Error('TLS needs --tls-ca, --tls-cert and --tls-key');
  const [ca, cert, key] = await Promise.all([tlsCa, tlsCert, tlsKey].map((path) => readFile(path)));
  return ca && cert && key && { ca, cert, key };
};

/** Connects to `target` as the options say. */
export const connect = async (options: GlobalOptions, target: string): Promise<SimKvm> => {
  const tls = await tlsOf(options);
  return SimKvm.connect(target, { timeoutMs: CONNECT_TIMEOUT_MS, ...(tls === undefined ? {} : { tls }) });
};

/**
 * Runs a command against the host that `--target` names, and prints what it gives: as JSON, or as `render` shows it.
 * A failure is printed for people, and is the program's exit code.
 */
export const runCommand = async <T>(
  options: GlobalOptions,
  console: Console,
  command: (simkvm: SimKvm) => Promise<T>,
  render: (value: T) => string,
): Promise<void> => {
  try {
    await using simkvm = await connect(options, options.target);
    const value = await command(simkvm);
    console.out(options.json ? json(value) : render(value));
  } catch (error) {
    console.error(describeFailure(error));
    console.exitCode(exitCodeOf(error));
  }
};
