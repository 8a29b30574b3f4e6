import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SimKvm } from '../../../client/index.js';
import { startDaemonUnder } from '../../helpers/daemon.js';
import { Needles } from '../../helpers/needles.js';
import { startTapProxy } from '../../helpers/tap-proxy.js';

const DRAM_BYTES = 2 * 2 ** 20;
/** What lies below the memory that the host hands out. */
const FIRST_BYTES = 16 * 2 ** 20;
const CHUNK = 2 ** 20;
const ZEROES = new Uint8Array(CHUNK);
const RECORDER = join(import.meta.dirname, '../../helpers/record-keys.cjs');

/** Bytes whose discovery would give something away, and what. */
export interface Secret {
  readonly what: string;
  readonly bytes: Uint8Array;
}

/** What a reader outside has seen at one moment of a guest's life. */
interface Sight {
  readonly dram: readonly Uint8Array[];
  readonly replies: Uint8Array;
  readonly log: Uint8Array;
}

/** Which secrets were in what the reader saw. */
export interface Found {
  readonly dram: readonly string[];
  readonly replies: readonly string[];
  readonly log: readonly string[];
}

export const NOTHING: Found = { dram: [], replies: [], log: [] };

/** In pieces of 16 bytes, so that a part of a key is found as well, and in both byte orders. */
const pieces = ({ what, bytes }: Secret): Secret[] => {
  const found: Secret[] = [];
  for (const order of [bytes, Uint8Array.from(bytes).reverse()])
    for (let at = 0; at + 16 <= order.length; at += 16) found.push({ what, bytes: order.subarray(at, at + 16) });
  return found.filter(({ bytes: [first, ...rest] }) => rest.some((byte) => byte !== first));
};

/** Seeks secrets in what was seen; each as it is, shifted, in hex and in base64. */
export const seek = (secrets: readonly Secret[], { dram, replies, log }: Sight): Found => {
  const sought = secrets.flatMap(pieces);
  const needles = new Needles(sought.map(({ bytes }) => bytes));
  const named = (...haystacks: Uint8Array[]): string[] => {
    const indices = new Set(haystacks.flatMap((haystack) => [...needles.in(haystack)]));
    return [...new Set([...indices].map((index) => sought[index]?.what ?? ''))];
  };
  return { dram: named(...dram), replies: named(replies), log: named(log) };
};

/** A daemon whose memory, replies and log are looked at, and all of whose keys are known to the test. */
export const observedHost = async (...options: string[]) => {
  const folder = mkdtempSync(join(tmpdir(), 'simkvm-keys-'));
  const file = join(folder, 'keys');
  const daemon = await startDaemonUnder(
    ['--require', RECORDER],
    { SIMKVM_KEYS: file },
    ...['--memory', String(DRAM_BYTES), '--log-level', 'debug', ...options],
  );
  const tap = await startTapProxy(daemon.address);
  const simkvm = await SimKvm.connect(tap.target);
  return {
    simkvm,
    /** Everything that a reader on the memory bus, on the network and of the log sees now, or has seen since the last time. */
    async look(): Promise<Sight> {
      const dram: Uint8Array[] = [];
      for (let at = 0; at < FIRST_BYTES + DRAM_BYTES; at += CHUNK) {
        const chunk = await simkvm.host.readPhysical(at, CHUNK);
        if (Buffer.compare(chunk, ZEROES) !== 0) dram.push(chunk);
      }
      return { dram, replies: tap.take(), log: Buffer.from(daemon.log()) };
    },
    /** Every key that the daemon has used so far, in the order of their first use. */
    keys: (): Secret[] =>
      readFileSync(file, 'utf8')
        .trimEnd()
        .split('\n')
        .map((line) => {
          const [what = '', hex = ''] = line.split(' ');
          return { what, bytes: Uint8Array.from(Buffer.from(hex, 'hex')) };
        }),
    async [Symbol.asyncDispose]() {
      await simkvm[Symbol.asyncDispose]();
      await tap[Symbol.asyncDispose]();
      await daemon[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true });
    },
  };
};
