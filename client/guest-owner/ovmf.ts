import { blob, equal, guid, u32, viewOf } from './bytes.js';

/** What an OVMF image says of itself in the table of GUIDs at its end. */
export interface Ovmf {
  readonly image: Uint8Array;
  /** Guest physical address of the image, which ends at 4 GiB. */
  readonly gpa: bigint;
  /** Memory that the VMM has to prepare for SEV-SNP, in the order in which it is launched. */
  readonly sections: readonly OvmfSection[];
  /** Where the table of kernel hashes goes; null: the image measures no kernel. */
  readonly hashTable: { readonly gpa: number; readonly size: number } | null;
  /** First instruction of application processors; null: the image does not say. */
  readonly resetEip: number | null;
}

export interface OvmfSection {
  readonly gpa: number;
  readonly size: number;
  readonly type: number;
}

/** `type` of a section. */
export const OVMF_SECTION = { SEC_MEM: 1, SECRETS: 2, CPUID: 3, SVSM_CAA: 4, KERNEL_HASHES: 0x10 } as const;

const GUIDS = {
  footer: guid('96b582de-1fb2-45f7-baea-a366c55a082d'),
  metadata: guid('dc886566-984a-4798-a75e-5585a7bf67cc'),
  hashTable: guid('7255371f-3a3b-4b04-927b-1da6efa8d454'),
  reset: guid('00f771de-1a7e-4fcb-890e-68c77e2fb44e'),
};
/** The footer ends this far before the image does. */
const FOOTER_FROM_END = 32;
const GUID_LENGTH = 16;
/** Length and GUID, behind an entry's data. */
const TRAILER = 2 + GUID_LENGTH;
const FOUR_GIB = 0x1_0000_0000n;

/** The entries of the table, by the GUID in hex. The table is read backwards; every entry's length and GUID follow its data. */
const tableOf = (image: Uint8Array): Map<string, Uint8Array> => {
  const entries = new Map<string, Uint8Array>();
  const end = image.length - FOOTER_FROM_END;
  if (end < TRAILER || !equal(image.subarray(end - GUID_LENGTH, end), GUIDS.footer)) return entries;
  const view = viewOf(image);
  const first = end - view.getUint16(end - TRAILER, true);
  for (let at = end - TRAILER; at - TRAILER >= first; ) {
    const length = view.getUint16(at - TRAILER, true);
    if (length < TRAILER || at - length < first || at - length < 0)
      throw new RangeError('the table of the OVMF image is damaged');
    entries.set(keyOf(image.subarray(at - GUID_LENGTH, at)), image.subarray(at - length, at - TRAILER));
    at -= length;
  }
  return entries;
};

/** The data of an entry, if it is there. */
const entryOf = (table: ReadonlyMap<string, Uint8Array>, id: Uint8Array, length: number): Uint8Array | undefined => {
  const entry = table.get(keyOf(id));
  if (entry !== undefined && entry.length < length) throw new RangeError('the table of the OVMF image is damaged');
  return entry;
};

const keyOf = (id: Uint8Array): string => Buffer.from(id).toString('hex');

const METADATA_HEADER = 16;
const SECTION_LENGTH = 12;

const METADATA_VERSION = 1;

const sectionsOf = (image: Uint8Array, entry: Uint8Array | undefined): OvmfSection[] => {
  if (entry === undefined) return [];
  const start = image.length - u32(entry, 0);
  if (start < 0 || Buffer.from(blob(image, start, 4)).toString('latin1') !== 'ASEV' || start + METADATA_HEADER > image.length)
    throw new RangeError('the OVMF image has no SEV metadata where it says so');
  const [version, count] = [u32(image, start + 8), u32(image, start + 12)];
  if (version !== METADATA_VERSION)
    throw new RangeError(`the SEV metadata of the OVMF image are of version ${version}, not ${METADATA_VERSION}`);
  if (start + METADATA_HEADER + count * SECTION_LENGTH > image.length)
    throw new RangeError(`the SEV metadata of the OVMF image have ${count} sections, for which there is no room`);
  return Array.from({ length: count }, (_, index) => {
    const at = start + METADATA_HEADER + index * SECTION_LENGTH;
    return { gpa: u32(image, at), size: u32(image, at + 4), type: u32(image, at + 8) };
  });
};

/** Reads an OVMF image, or the end of one. @throws RangeError if its table is damaged */
export const parseOvmf = (image: Uint8Array): Ovmf => {
  const table = tableOf(image);
  const hashTable = entryOf(table, GUIDS.hashTable, 8);
  const reset = entryOf(table, GUIDS.reset, 4);
  return {
    image,
    gpa: FOUR_GIB - BigInt(image.length),
    sections: sectionsOf(image, entryOf(table, GUIDS.metadata, 4)),
    hashTable: hashTable === undefined || u32(hashTable, 0) === 0 ? null : { gpa: u32(hashTable, 0), size: u32(hashTable, 4) },
    resetEip: reset === undefined ? null : u32(reset, 0),
  };
};
