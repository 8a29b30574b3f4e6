import { setTimeout } from 'node:timers/promises';
import { type MigrationLimitsInit, PostCopy } from '../../client/index.js';
import type { Figure } from './figure.js';
import { BenchHosts } from './migration-hosts.js';

/** How long a guest stands still when it moves: a distribution over as many runs as the target says. */

const RUNS = 50;
/** The one of the sorted runs that the target is about: 49 of 50. */
const TARGET_RUN = 48;
const MIB = 32;
const PAGE = 4096;
/** What the source may take for the stop, as it foresees it. */
const LIMITS = { downtime_ms: 20 };
/** One round of copying, and then it goes without what it has written meanwhile. */
const POST_COPY = { downtime_ms: 0, rounds: 1, post_copy: PostCopy.POST_COPY_AFTER_ROUNDS };

const CODE = 0x1000;
const TABLES = { pml4: 0x2000, pdpt: 0x3000, directory: 0x4000 } as const;
/** What the guest writes to, a page after the other, again and again. */
const WORKING_SET = { begin: 0x20_0000, end: 0x120_0000 } as const;
const PAGES_PER_RUN = 64;
/** 16 MiB/s. */
const DIRTY_BYTES_PER_MS = (16 * 2 ** 20) / 1000;

const imm32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/** Writes to PAGES_PER_RUN pages, then does OUT, and goes on where it was; 64-bit code with the address in RDI. */
const DIRTY_PAGES = Uint8Array.from([
  ...[0x48, 0xc7, 0xc1, ...imm32(PAGES_PER_RUN)], // mov rcx, PAGES_PER_RUN
  ...[0x48, 0xff, 0x07], // inc qword [rdi]
  ...[0x48, 0x81, 0xc7, ...imm32(PAGE)], // add rdi, PAGE
  ...[0x48, 0x81, 0xff, ...imm32(WORKING_SET.end)], // cmp rdi, end
  ...[0x72, 0x07], // jb over the next one
  ...[0x48, 0xc7, 0xc7, ...imm32(WORKING_SET.begin)], // mov rdi, begin
  ...[0x48, 0xff, 0xc9], // dec rcx
  ...[0x75, 0xe1], // jnz to inc
  ...[0xe6, 0x80], // out 0x80, al
  ...[0xeb, 0xd6], // jmp to the beginning
]);

const PRESENT_WRITABLE = 3n;
const LARGE = 0x80n;
const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };

const loadGuest = async ({ process: { memory }, guest: { uaddr, vcpu } }: BenchHosts): Promise<void> => {
  const table = (at: number, entries: readonly bigint[]) =>
    memory.write(uaddr + BigInt(at), new Uint8Array(BigUint64Array.from(entries).buffer));
  await table(TABLES.pml4, [BigInt(TABLES.pdpt) | PRESENT_WRITABLE]);
  await table(TABLES.pdpt, [BigInt(TABLES.directory) | PRESENT_WRITABLE]);
  await table(
    TABLES.directory,
    Array.from({ length: MIB / 2 }, (_, index) => BigInt(index * 2 * 2 ** 20) | PRESENT_WRITABLE | LARGE),
  );
  await memory.write(uaddr + BigInt(CODE), DIRTY_PAGES);
  const sregs = await vcpu.getSregs();
  const data = { ...FLAT, selector: 0x10, type: 3, l: 0, db: 1 };
  const segments = { cs: { ...FLAT, selector: 8, type: 11, l: 1, db: 0 }, ds: data, es: data, fs: data, gs: data, ss: data };
  const control = { cr0: 0x8000_0011n, cr3: BigInt(TABLES.pml4), cr4: 0x220n, efer: 0x500n };
  await vcpu.setSregs({ ...sregs, ...segments, ...control });
  await vcpu.setRegs({ rip: BigInt(CODE), rdi: BigInt(WORKING_SET.begin), rflags: 2n });
};

/** Runs the guest, wherever it is, so that it writes as fast as it should, until `over`. @returns MiB/s that it has come to */
const runGuest = async (hosts: BenchHosts, over: AbortSignal): Promise<number> => {
  const begin = performance.now();
  let bytes = 0;
  while (!over.aborted) {
    const { vcpu } = hosts.guest;
    const owed = (performance.now() - begin) * DIRTY_BYTES_PER_MS - bytes;
    const error = owed <= 0 ? null : (await vcpu.try.run()).error;
    if (error === null && owed > 0) bytes += PAGES_PER_RUN * PAGE;
    // Nothing to be done yet; or it has been stopped, or has gone, and its new vCPU is about to be known.
    else if (error === null || error.errno === 'EIO' || error.errno === 'EINTR') await setTimeout(1);
    else throw error;
  }
  return bytes / 2 ** 20 / ((performance.now() - begin) / 1000);
};

/** Milliseconds of every run, sorted. */
const downtimes = async (hosts: BenchHosts, limits: MigrationLimitsInit = LIMITS): Promise<readonly number[]> => {
  const all: number[] = [];
  for (let run = 0; run < RUNS; run++) all.push((await hosts.move({ limits })).statistics.downtime_ms);
  return all.sort((a, b) => a - b);
};

const distribution = (name: string, sorted: readonly number[], limitMs: number): Figure => {
  const at = (index: number): number => sorted[index] ?? Number.NaN;
  const quantiles = { half: at(RUNS / 2 - 1), '9 in 10': at(0.9 * RUNS - 1), '49 in 50': at(TARGET_RUN), worst: at(RUNS - 1) };
  return {
    name: `downtime, ${name}, ${RUNS} runs`,
    ours: Object.entries(quantiles)
      .map(([which, value]) => `${which} ${value.toFixed(1)} ms`)
      .join(', '),
    baseline: `limit ${limitMs} ms`,
    ratio: at(TARGET_RUN) / limitMs,
    target: 'at most 1 in 49 of 50 runs',
  };
};

/** How long the source has the guest stopped, as it tells at the end: sealed, over loopback TCP. */
export const measureDowntime = async (): Promise<Figure[]> => {
  await using hosts = await BenchHosts.startWarm({ sealed: true, authority: null }, 'plain', MIB);
  const idle = distribution('idle guest', await downtimes(hosts), 10);
  await loadGuest(hosts);
  const over = new AbortController();
  const running = runGuest(hosts, over.signal);
  const sorted = await Promise.race([downtimes(hosts), running.then(() => [])]);
  const early = await Promise.race([downtimes(hosts, POST_COPY), running.then(() => [])]);
  over.abort();
  const guest = `guest that dirties ${(await running).toFixed(1)} MiB/s`;
  return [idle, distribution(guest, sorted, 60), distribution(`${guest}, post-copy after one round`, early, 60)];
};
