import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { Failure } from '../kernel/failure.js';
import type { Ledger, LedgerEntry } from '../migration/ledger.js';
import { replaceFile } from './durable-file.js';

/** A line of the file, as JSON. The first one names the store. */
type Line =
  | { readonly kind: 'store'; readonly id: string }
  | LedgerEntry
  /** The commit of the session need not be remembered any more. */
  | { readonly kind: 'forgotten'; readonly session: string };

const lineOf = (line: Line): string => `${JSON.stringify(line)}\n`;

const parse = (text: string): Line | null => {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null || !('kind' in value)) return null;
  const { kind } = value;
  if (kind === 'store') return 'id' in value && typeof value.id === 'string' ? { kind, id: value.id } : null;
  if (!('session' in value) || typeof value.session !== 'string') return null;
  const { session } = value;
  if (kind === 'committed' || kind === 'forgotten') return { kind, session };
  if (kind !== 'overridden' || !('decision' in value)) return null;
  const { decision } = value;
  return decision === 'run' || decision === 'discard' ? { kind, session, decision } : null;
};

/** For whoever has a ledger that cannot be read. */
const REMEDY = 'Restore it, or remove it where no other host can still be in doubt about a guest that came here';

/** What a ledger says. */
interface Contents {
  readonly id: string;
  readonly committed: Set<string>;
  /** Kept for as long as the store: an operator's decision is evidence. */
  readonly overridden: LedgerEntry[];
}

/**
 * Reads a ledger. What the daemon was writing when it was killed may be there in part, behind the last end of a line; nobody
 * has been told of it, so it is left out.
 * @throws Error where anything else is damaged: what is missing may be a Commit, and a guest would run twice
 */
const read = (path: string): Contents => {
  const [first, ...rest] = readFileSync(path, 'utf8').split('\n').slice(0, -1).map(parse);
  if (first?.kind !== 'store') throw new Error(`${path} is not a ledger. ${REMEDY}`);
  const committed = new Set<string>();
  const overridden: LedgerEntry[] = [];
  for (const [index, line] of rest.entries()) {
    if (line?.kind === 'committed') committed.add(line.session);
    else if (line?.kind === 'forgotten') committed.delete(line.session);
    else if (line?.kind === 'overridden') overridden.push(line);
    else throw new Error(`${path} is damaged at line ${index + 2}: what is missing may be a Commit. ${REMEDY}`);
  }
  return { id: first.id, committed, overridden };
};

/**
 * The ledger in a file: lines that are only ever added to. It is written anew by the start of a daemon, which leaves out the
 * obsolete, and when there is room again after an entry could not be recorded.
 */
export class LedgerFile implements Ledger {
  readonly id: string;
  private readonly committed: Set<string>;
  private readonly overridden: LedgerEntry[];
  private fd: number;
  /** Bytes that are known to be good. */
  private length: number;
  private broken: Failure | null = null;

  private constructor(
    private readonly path: string,
    { id, committed, overridden }: Contents,
  ) {
    this.id = id;
    this.committed = committed;
    this.overridden = overridden;
    this.length = this.rewrite();
    this.fd = openSync(path, 'a');
  }

  /**
   * @param newId of the store, if there is none at `path` yet
   * @throws Error if what is there is no ledger, or is damaged before its end
   */
  static open(path: string, newId: () => string): LedgerFile {
    return new LedgerFile(path, existsSync(path) ? read(path) : { id: newId(), committed: new Set(), overridden: [] });
  }

  get records(): readonly LedgerEntry[] {
    const committed = [...this.committed].map((session): LedgerEntry => ({ kind: 'committed', session }));
    return [...this.overridden, ...committed];
  }

  get unwritable(): Failure | null {
    return this.broken === null ? null : this.mend();
  }

  record(entry: LedgerEntry): Failure | null {
    const failure = this.unwritable ?? this.append(entry, true);
    if (failure !== null) return failure;
    if (entry.kind === 'committed') this.committed.add(entry.session);
    else this.overridden.push(entry);
    return null;
  }

  hasCommitted(session: string): boolean {
    return this.committed.has(session);
  }

  /** Reaches the disk some time, or never: a record too many is only kept for longer. */
  forget(session: string): void {
    if (this.committed.delete(session) && this.broken === null) this.append({ kind: 'forgotten', session }, false);
  }

  close(): void {
    closeSync(this.fd);
  }

  /** Puts a file with what is to be remembered in the place of the old one. @returns its length @throws Error */
  private rewrite(): number {
    const text = [{ kind: 'store', id: this.id } as const, ...this.records].map(lineOf).join('');
    replaceFile(this.path, text);
    return Buffer.byteLength(text);
  }

  /** EIO if it cannot be written; then it is not in the file. */
  private append(line: Line, sync: boolean): Failure | null {
    const bytes = Buffer.from(lineOf(line));
    try {
      for (let written = 0; written < bytes.length; ) written += writeSync(this.fd, bytes, written);
      if (sync) fsyncSync(this.fd);
    } catch (error) {
      return this.fail(error);
    }
    this.length += bytes.length;
    return null;
  }

  /**
   * Takes back what has come into the file: the caller is told that it is not there. After fsync has failed nobody knows what of
   * it is on disk, so nothing is added to it any more.
   */
  private fail(error: unknown): Failure {
    this.broken = this.unwritableBecause(error);
    try {
      ftruncateSync(this.fd, this.length);
    } catch {
      // The disk does not answer at all; the torn line is left out at the next start.
    }
    return this.broken;
  }

  /** A new file is known to be on disk as a whole, whatever became of the old one. @returns why there is none */
  private mend(): Failure | null {
    try {
      this.length = this.rewrite();
      const fd = openSync(this.path, 'a');
      closeSync(this.fd);
      this.fd = fd;
      this.broken = null;
    } catch (error) {
      this.broken = this.unwritableBecause(error);
    }
    return this.broken;
  }

  private unwritableBecause(error: unknown): Failure {
    const message = error instanceof Error ? error.message : String(error);
    const allowed = 'a directory that can be written to: until then no guest can come, and nothing is decided';
    return new Failure('EIO', 'LEDGER_UNWRITABLE', 'simkvmd', { path: this.path, message, allowed });
  }
}
