import { hostname } from 'node:os';

/** Least level that is logged, by the daemon's `--log-level`. */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Numbers of the levels as pino and bunyan write them, so that the tools that read those logs read this one. */
const SEVERITY: Readonly<Record<LogLevel, number>> = {
  debug: 20,
  info: 30,
  warn: 40,
  error: 50,
  silent: Number.POSITIVE_INFINITY,
};

/** What happens to a line; the fields must be such as JSON can tell. */
type Say = (message: string, fields?: object) => void;

/** The daemon's log: a JSON object for each line, with level, time (milliseconds), pid, hostname, its fields and msg. */
export interface Log {
  readonly debug: Say;
  readonly info: Say;
  readonly warn: Say;
  /** Whether lines of a level are written: for whoever would have to work for one. */
  writes(level: LogLevel): boolean;
}

/** @param write takes a line at once, since the next thing may be the daemon's end */
export const createLog = (least: LogLevel, write: (line: string) => void): Log => {
  const writes = (level: LogLevel): boolean => SEVERITY[level] >= SEVERITY[least];
  const { pid } = process;
  const host = hostname();
  const sayer =
    (level: LogLevel): Say =>
    (msg, fields) => {
      if (!writes(level)) return;
      write(`${JSON.stringify({ level: SEVERITY[level], time: Date.now(), pid, hostname: host, ...fields, msg })}\n`);
    };
  return { debug: sayer('debug'), info: sayer('info'), warn: sayer('warn'), writes };
};
