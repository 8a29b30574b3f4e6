import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Ledger } from '../migration/ledger.js';
import { lockDirectory } from './directory-lock.js';
import { replaceFile } from './durable-file.js';
import { LedgerFile } from './ledger-file.js';

const SEED_BYTES = 32;
const STORE_ID_BYTES = 16;
/** Permissions of anybody but the owner. */
const OTHERS = 0o077;

/** What a daemon is beyond one start of it. */
export interface DaemonState {
  /** Secret from which the daemon's Ed25519 key follows, 32 bytes. */
  readonly identitySeed: Uint8Array;
  readonly ledger: Ledger;
  close(): void;
}

const readSeed = (path: string): Uint8Array => {
  if ((statSync(path).mode & OTHERS) !== 0) throw new Error(`${path} can be read by others; chmod 600 it, or remove it`);
  const text = readFileSync(path, 'utf8').trim();
  if (!/^[\da-f]{64}$/.test(text)) throw new Error(`${path} is not a seed of ${SEED_BYTES} bytes in hex`);
  return Buffer.from(text, 'hex');
};

/** Others have put the daemon's fingerprint on their lists, so it is made once. */
const seedAt = (path: string): Uint8Array => {
  if (!existsSync(path)) replaceFile(path, `${randomBytes(SEED_BYTES).toString('hex')}\n`);
  return readSeed(path);
};

/** With those that it is in. One by one: where there can be none, as in /proc, Node's `recursive` does not end. */
const makeDirectory = (path: string): void => {
  if (existsSync(path)) return;
  makeDirectory(dirname(path));
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    // Another daemon may have been faster with one that both are in.
    if (!existsSync(path)) throw error;
  }
};

const open = (path: string): DaemonState => {
  makeDirectory(path);
  const lock = lockDirectory(path);
  try {
    const identitySeed = seedAt(join(path, 'identity'));
    const ledger = LedgerFile.open(join(path, 'ledger'), () => randomBytes(STORE_ID_BYTES).toString('hex'));
    const close = (): void => {
      ledger.close();
      lock.release();
    };
    return { identitySeed, ledger, close };
  } catch (error) {
    lock.release();
    throw error;
  }
};

/**
 * The directory of `--state-dir`: `identity`, `ledger`, and a lock. It is made if it is not there.
 * @throws Error if another daemon has it, what is in it is damaged, or it cannot be written to
 */
export const openStateDir = (path: string): DaemonState => {
  try {
    return open(path);
  } catch (error) {
    throw new Error(`--state-dir ${path}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
};
