import type { Logger } from 'pino';

/** Least level that is logged, by the daemon's `--log-level`. */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** What is written as a line of its own; `error` and `silent` are only thresholds. */
type Severity = 'debug' | 'info' | 'warn';
type Say = (message: string, fields?: object) => void;

/** The daemon's log. */
export type Log = Readonly<Record<Severity, Say>> & {
  /** Whether lines of a level are written: for whoever would have to work for one. */
  writes(level: Severity): boolean;
};

/** Opens pino at a level; what it writes has been written when the call returns, since the next thing may be the daemon's end. */
const openPino = async (level: LogLevel): Promise<Logger> => {
  const { pino } = await import('pino');
  return pino({ level }, pino.destination({ fd: 2, sync: true }));
};

/**
 * pino, loaded for the first line that is written: it costs a fifth of the daemon's start, and whoever starts a daemon waits
 * for its first answer.
 */
export const createLog = (least: LogLevel, open: (level: LogLevel) => Promise<Logger> = openPino): Log => {
  let opening: Promise<Logger> | null = null;
  const writes = (level: LogLevel): boolean => LOG_LEVELS.indexOf(level) >= LOG_LEVELS.indexOf(least);
  const sayer =
    (level: Severity): Say =>
    (message, fields = {}) => {
      if (!writes(level)) return;
      opening ??= open(least);
      void opening.then((logger) => logger[level](fields, message));
    };
  return { debug: sayer('debug'), info: sayer('info'), warn: sayer('warn'), writes };
};
