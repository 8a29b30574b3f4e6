import { createHash } from 'node:crypto';
import { guid, padded } from './bytes.js';

/** A kernel that is booted directly: what its hash table is made of. */
export interface DirectBoot {
  readonly kernel: Uint8Array;
  /** @default empty */
  readonly initrd?: Uint8Array;
  /** @default empty */
  readonly cmdline?: string;
}

const TABLE = '9438d606-4f22-4cc9-b479-a793d411fd21';
const CMDLINE = '97d02dd8-bd20-4c94-aa78-e7714d36ab2a';
const INITRD = '44baf731-3a2f-4bd7-9af1-41e29169781d';
const KERNEL = '4de79437-abd2-427f-b835-d5b172d2045b';
const ENTRY_LENGTH = 50;
const TABLE_LENGTH = 18 + 3 * ENTRY_LENGTH;

const u16 = (value: number): Uint8Array => Uint8Array.of(value & 0xff, value >> 8);

const entry = (id: string, data: Uint8Array): Uint8Array =>
  Buffer.concat([guid(id), u16(ENTRY_LENGTH), createHash('sha256').update(data).digest()]);

/** The table of hashes that QEMU measures with the firmware (`kernel-hashes=on`), padded to whole blocks: 176 bytes. */
export const kernelHashes = ({ kernel, initrd = new Uint8Array(0), cmdline = '' }: DirectBoot): Uint8Array => {
  const entries = [entry(CMDLINE, Buffer.from(`${cmdline}\0`)), entry(INITRD, initrd), entry(KERNEL, kernel)];
  return padded(Buffer.concat([guid(TABLE), u16(TABLE_LENGTH), ...entries]), 16);
};
