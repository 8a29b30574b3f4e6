import type { Segment } from './driver.js';
import { GPA } from './layout.js';

const PAGE = 4096;
const LARGE_PAGE = 2 ** 21;
const GIB = 2 ** 30;
const PRESENT_WRITABLE = 0x3n;
const PAGE_SIZE_BIT = 0x80n;
/** Position of the C-bit: CPUID 0x8000001F EBX bits 5:0 on this host. */
const C_BIT = 1n << 51n;

const table = (gpa: number, entries: readonly (readonly [index: number, value: bigint])[]): Segment => {
  const bytes = new Uint8Array(PAGE);
  const view = new DataView(bytes.buffer);
  for (const [index, value] of entries) view.setBigUint64(index * 8, value, true);
  return { gpa, bytes };
};

const privateTable = (gpa: number): bigint => BigInt(gpa) | PRESENT_WRITABLE | C_BIT;

/**
 * Identity-mapping page tables of a 64-bit guest (APM volume 2, 5.3): its memory below `lowBytes` private but for the pages
 * of `shared`, and the 2 MiB in which each of `devices` lies, between 3 and 4 GiB, shared.
 */
export const pageTables = ({
  lowBytes,
  shared,
  devices,
}: {
  readonly lowBytes: number;
  readonly shared: readonly number[];
  readonly devices: readonly number[];
}): readonly Segment[] => {
  const pages = Array.from({ length: lowBytes / PAGE }, (_, index) => index);
  const lowEntry = (page: number): bigint => BigInt(page * PAGE) | PRESENT_WRITABLE | (shared.includes(page * PAGE) ? 0n : C_BIT);
  const large = (address: number): readonly [number, bigint] => {
    const base = address - (address % LARGE_PAGE);
    return [(base % GIB) / LARGE_PAGE, BigInt(base) | PRESENT_WRITABLE | PAGE_SIZE_BIT];
  };
  return [
    table(GPA.PML4, [[0, privateTable(GPA.PDPT)]]),
    table(GPA.PDPT, [
      [0, privateTable(GPA.LOW_PAGE_DIRECTORY)],
      [3, privateTable(GPA.HIGH_PAGE_DIRECTORY)],
    ]),
    table(GPA.LOW_PAGE_DIRECTORY, [[0, privateTable(GPA.LOW_PAGE_TABLE)]]),
    table(GPA.HIGH_PAGE_DIRECTORY, devices.map(large)),
    table(
      GPA.LOW_PAGE_TABLE,
      pages.map((page) => [page, lowEntry(page)]),
    ),
  ];
};
