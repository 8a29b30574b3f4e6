import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join, resolve } from 'node:path';

const SOURCE = resolve('test/differential/native/system-call-server.c');
const CACHE = resolve('node_modules/.cache/simkvm');
const FLAGS = ['-O2', '-Wall', '-Wextra', '-pthread'] as const;

/** The program that makes system calls for others, compiled unless that has been done. Returns its path. */
export const buildSystemCallServer = (): string => {
  const hash = createHash('sha256').update(readFileSync(SOURCE)).digest('hex').slice(0, 16);
  const program = join(CACHE, `system-call-server-${hash}`);
  if (existsSync(program)) return program;
  mkdirSync(CACHE, { recursive: true });
  const unfinished = `${program}.${process.pid}`;
  execFileSync('gcc', [...FLAGS, '-o', unfinished, SOURCE]);
  renameSync(unfinished, program);
  return program;
};
