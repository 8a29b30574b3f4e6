import { createDecipheriv } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { ExchangeRequest, MigrationFrame } from '../../../gen/messages.js';

const COUNTER_BYTES = 8;
const TAG_BYTES = 16;

/** The two daemons of a migration. */
export type Side = 'source' | 'destination';

/** What a message of Exchange is, for somebody who has the daemons' keys, and the frame where it is one. */
export interface Reading {
  /** `hello`, `ask`, `commit`; `sealed` where no key opens it. */
  readonly what: string;
  readonly frame: MigrationFrame | null;
}

const naming = (frame: MigrationFrame): Reading => {
  const { ask, standing, ack, settled, data } = frame;
  if (data !== null) return { what: Object.keys(data).find((name) => name !== 'sequence') ?? 'data', frame };
  return { what: ask ? 'ask' : standing ? 'standing' : ack ? 'ack' : settled ? 'settled' : 'nothing', frame };
};

const opened = (sealed: Uint8Array, key: Uint8Array): Buffer | null => {
  const nonce = Buffer.concat([Buffer.alloc(4), sealed.subarray(0, COUNTER_BYTES)]);
  const end = sealed.length - TAG_BYTES;
  const decipher = createDecipheriv('aes-256-gcm', key, nonce).setAuthTag(sealed.subarray(end));
  try {
    return Buffer.concat([decipher.update(sealed.subarray(COUNTER_BYTES, end)), decipher.final()]);
  } catch {
    return null;
  }
};

/** The keys that daemons under `record-keys.cjs` have given to the cipher of their channels. */
export const channelKeys = (files: readonly string[]): Uint8Array[] =>
  files
    .filter((file) => existsSync(file))
    // A line that is still being written is none yet.
    .flatMap((file) => readFileSync(file, 'utf8').split('\n').slice(0, -1))
    .filter((line) => line.startsWith('aes-256-gcm '))
    .map((line) => Buffer.from(line.split(' ')[1] ?? '', 'hex'));

/** Tells the messages of one direction of one stream apart. A key is recorded before the first message under it leaves. */
export class FrameReader {
  private key: Uint8Array | null = null;

  /** @param keys every key that there is; null: frames are not sealed */
  constructor(private readonly keys: (() => readonly Uint8Array[]) | null) {}

  read(message: Buffer): Reading {
    const { attach, hello, proof, sealed } = ExchangeRequest.decode(message);
    if (sealed === null) return { what: attach ? 'attach' : hello ? 'hello' : proof ? 'proof' : 'nothing', frame: null };
    const frame = this.keys === null ? sealed : this.unseal(sealed, this.keys);
    return frame === null ? { what: 'sealed', frame: null } : naming(MigrationFrame.decode(frame));
  }

  private unseal(sealed: Uint8Array, keys: () => readonly Uint8Array[]): Uint8Array | null {
    const candidates = this.key === null ? keys() : [this.key];
    for (const key of candidates) {
      const frame = opened(sealed, key);
      if (frame === null) continue;
      this.key = key;
      return frame;
    }
    return null;
  }
}
