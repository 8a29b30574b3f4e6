import { struct, u8 } from '../byte-layout.js';

/** TCB_VERSION of Milan and Genoa: the security versions of the parts of the trusted computing base (sev-firmware.md 3.16). */
export interface TcbVersion {
  readonly bootLoader: number;
  readonly tee: number;
  readonly snp: number;
  readonly microcode: number;
}

const TCB = struct(8, { bootLoader: u8(0), tee: u8(1), snp: u8(6), microcode: u8(7) });

export function encodeTcb({ bootLoader, tee, snp, microcode }: TcbVersion): bigint {
  return BigInt(bootLoader) | (BigInt(tee) << 8n) | (BigInt(snp) << 48n) | (BigInt(microcode) << 56n);
}

/** The eight bytes of a version, or null if a reserved one is not zero. */
export function decodeTcb(value: bigint): TcbVersion | null {
  const bytes = tcbBytes(value);
  if (!TCB.reservedIsZero(bytes)) return null;
  return {
    bootLoader: TCB.bootLoader.get(bytes),
    tee: TCB.tee.get(bytes),
    snp: TCB.snp.get(bytes),
    microcode: TCB.microcode.get(bytes),
  };
}

/** A version in little-endian bytes. */
export function tcbBytes(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

/** Whether no component of `a` is newer than in `b`. */
export const isTcbAtMost = (a: TcbVersion, b: TcbVersion): boolean =>
  a.bootLoader <= b.bootLoader && a.tee <= b.tee && a.snp <= b.snp && a.microcode <= b.microcode;
