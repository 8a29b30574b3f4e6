import type { StructValue } from '../../../../../server/kernel/uapi/struct.js';
import { kvm_segment } from '../../../../../server/kernel/uapi/x86-structs.js';
import type { Guest } from '../x86/guest.js';

/** A directory of 4 MiB pages, or a PML4 with a table of 1 GiB pages behind it. */
const TABLES = 0x2000;
const PRESENT_WRITABLE = 0x3n;
const PRESENT_WRITABLE_LARGE = 0x83n;
const CR0 = { PE: 0x1n, ET: 0x10n, PG: 0x8000_0000n } as const;
const CR4 = { PSE: 0x10n, PAE: 0x20n } as const;
const EFER = { LME: 0x100n, LMA: 0x400n } as const;
const GIB = 0x4000_0000n;

type Segment = StructValue<typeof kvm_segment>;
interface CodeKind {
  readonly l: number;
  readonly db: number;
}

const flat = (selector: number, type: number, { l, db }: CodeKind): Segment => ({
  ...kvm_segment.decode(new Uint8Array(kvm_segment.size)),
  ...{ limit: 0xffff_ffff, selector, type, present: 1, s: 1, g: 1, l, db },
});

const segments = (code: CodeKind): Record<'cs' | 'ds' | 'es' | 'fs' | 'gs' | 'ss', Segment> => {
  const data = flat(16, 3, { l: 0, db: 1 });
  return { cs: flat(8, 11, code), ds: data, es: data, fs: data, gs: data, ss: data };
};

const writeEntry = (guest: Guest, address: number, value: bigint): void => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  guest.write(address, bytes.toString('hex'));
};

/** Flat 32-bit protected mode. */
export const protectedMode = (guest: Guest): void =>
  guest.setSregs(() => ({ ...segments({ l: 0, db: 1 }), cr0: CR0.PE | CR0.ET }));

/** The same with paging: the first 4 MiB are mapped where they are. */
export const pagedMode = (guest: Guest): void => {
  writeEntry(guest, TABLES, PRESENT_WRITABLE_LARGE);
  const paging = { cr3: BigInt(TABLES), cr4: CR4.PSE, cr0: CR0.PG | CR0.PE | CR0.ET };
  guest.setSregs(() => ({ ...segments({ l: 0, db: 1 }), ...paging }));
};

/** 64-bit mode: the first and the fourth GiB are mapped where they are. */
export const longMode = (guest: Guest): void => {
  writeEntry(guest, TABLES, BigInt(TABLES + 0x1000) | PRESENT_WRITABLE);
  writeEntry(guest, TABLES + 0x1000, PRESENT_WRITABLE_LARGE);
  writeEntry(guest, TABLES + 0x1018, (3n * GIB) | PRESENT_WRITABLE_LARGE);
  const paging = { cr3: BigInt(TABLES), cr4: CR4.PAE, cr0: CR0.PG | CR0.PE | CR0.ET, efer: EFER.LME | EFER.LMA };
  guest.setSregs(() => ({ ...segments({ l: 1, db: 0 }), ...paging }));
};
