import { closeSync, existsSync, openSync, readdirSync, readFileSync, readlinkSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Who holds a directory, in the name of an empty file: what is to be compared is there as soon as the file is. A process is
 * known by more than its number, which another one has after a restart of the machine, or sooner.
 */
interface Holder {
  /** Of this start of the machine. */
  readonly boot: string;
  /** Of the table in which `pid` is a number (a container has its own). */
  readonly namespace: string;
  readonly pid: number;
  /** When the process began, in ticks since the machine did. */
  readonly started: string;
}

const PREFIX = 'lock';
/** Where the system has no /proc. */
const UNKNOWN = '0';

const nameOf = ({ boot, namespace, pid, started }: Holder): string => [PREFIX, boot, namespace, pid, started].join('.');

const holderOf = (name: string): Holder | null => {
  const [, boot, namespace, pid, started] = /^lock\.([\da-f-]+)\.(\d+)\.(\d+)\.(\d+)$/.exec(name) ?? [];
  if (boot === undefined || namespace === undefined || started === undefined) return null;
  return { boot, namespace, pid: Number(pid), started };
};

const hasProc = (): boolean => existsSync('/proc/self/stat');

/** When a process began; null: there is none, or one that is only waited for. */
const startOf = (pid: number): string | null => {
  try {
    if (!hasProc()) return process.kill(pid, 0) ? UNKNOWN : null;
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name of the program, in brackets, may hold anything; the third field follows it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
};

const self = (): Holder => ({
  boot: hasProc() ? readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim() : UNKNOWN,
  namespace: hasProc() ? readlinkSync('/proc/self/ns/pid').replace(/\D/g, '') : UNKNOWN,
  pid: process.pid,
  started: startOf(process.pid) ?? UNKNOWN,
});

/** Whether `holder` may still be there. Of a process in another table nobody can tell. */
const mayLive = (holder: Holder, { boot, namespace }: Holder): boolean =>
  holder.boot === boot && (holder.namespace !== namespace || startOf(holder.pid) === holder.started);

const heldBy = (path: string, { pid }: Holder, file: string): Error =>
  new Error(`${path} belongs to the daemon with pid ${pid}; if that has ended, remove ${join(path, file)}`);

/** A directory that is held until `release`, or until this process ends, however it does. */
export interface DirectoryLock {
  release(): void;
}

/**
 * Holds a directory against other processes, and against a second holder in this one. It announces itself first and looks
 * then: of two that come at once one sees the other, or both do and neither gets it.
 * @throws Error that names the holder
 */
export const lockDirectory = (path: string): DirectoryLock => {
  const own = self();
  const file = nameOf(own);
  if (existsSync(join(path, file))) throw heldBy(path, own, file);
  closeSync(openSync(join(path, file), 'wx', 0o600));
  const release = (): void => unlinkSync(join(path, file));
  for (const name of readdirSync(path)) {
    const holder = holderOf(name);
    if (holder === null || name === file) continue;
    if (mayLive(holder, own)) {
      release();
      throw heldBy(path, holder, name);
    }
    unlinkSync(join(path, name));
  }
  return { release };
};
