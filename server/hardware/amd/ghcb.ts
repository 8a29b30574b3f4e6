import { PAGE_SIZE } from '../units.js';
import { blob, type Field, struct, u8, u16, u32, u64 } from './byte-layout.js';

/**
 * The guest-hypervisor communication block: a shared page through which an SEV-ES guest tells the host what an exit is about
 * (GHCB specification, revision 2; `struct ghcb`).
 */
export const GHCB = struct(PAGE_SIZE, {
  cpl: u8(0x0cb),
  xss: u64(0x140),
  dr7: u64(0x160),
  rax: u64(0x1f8),
  rcx: u64(0x308),
  rdx: u64(0x310),
  rbx: u64(0x318),
  rbp: u64(0x328),
  rsi: u64(0x330),
  rdi: u64(0x338),
  r8: u64(0x340),
  r9: u64(0x348),
  r10: u64(0x350),
  r11: u64(0x358),
  r12: u64(0x360),
  r13: u64(0x368),
  r14: u64(0x370),
  r15: u64(0x378),
  swExitCode: u64(0x390),
  swExitInfo1: u64(0x398),
  swExitInfo2: u64(0x3a0),
  swScratch: u64(0x3a8),
  xcr0: u64(0x3e8),
  validBitmap: blob(0x3f0, 16),
  x87StateGpa: u64(0x400),
  sharedBuffer: blob(0x800, 2032),
  protocolVersion: u16(0xffa),
  usage: u32(0xffc),
});

/** Protocol versions that this host speaks. */
const GHCB_PROTOCOL = { MIN: 1, MAX: 2 } as const;

/** A field of the save area, as far as the bitmap is concerned: one bit for each quadword. */
type Placed = Pick<Field<unknown>, 'offset'>;

const byteOf = ({ offset }: Placed): number => GHCB.validBitmap.offset + (offset >> 6);
const maskOf = ({ offset }: Placed): number => 1 << ((offset >> 3) & 7);

/** Whether the writer of the block has declared a field of the save area as valid. */
export const isGhcbFieldValid = (page: Uint8Array, field: Placed): boolean => (page[byteOf(field)] & maskOf(field)) !== 0;

/** Writes a field of the save area and declares it as valid. */
export function setGhcbField<Value>(page: Uint8Array, field: Field<Value>, value: Value): void {
  field.set(page, value);
  page[byteOf(field)] |= maskOf(field);
}

/** Declares no field as valid, as either side does before it writes. */
export const clearGhcbFields = (page: Uint8Array): void => GHCB.validBitmap.set(page, new Uint8Array(0));

/** Exit codes that only VMGEXIT has; all others are those of the VMCB. */
export const GHCB_EXIT = {
  MMIO_READ: 0x8000_0001n,
  MMIO_WRITE: 0x8000_0002n,
  NMI_COMPLETE: 0x8000_0003n,
  AP_HLT_LOOP: 0x8000_0004n,
  AP_JUMP_TABLE: 0x8000_0005n,
  PSC: 0x8000_0010n,
  GUEST_REQUEST: 0x8000_0011n,
  EXT_GUEST_REQUEST: 0x8000_0012n,
  AP_CREATION: 0x8000_0013n,
  RUN_VMPL: 0x8000_0018n,
  HV_FEATURES: 0x8000_fffdn,
  TERMINATION: 0x8000_fffen,
  UNSUPPORTED: 0x8000_ffffn,
} as const;

/** Requests and responses of the protocol in the GHCB MSR: bits 11:0 of its value. */
export const GHCB_MSR = {
  SEV_INFO_RESP: 0x001,
  SEV_INFO_REQ: 0x002,
  CPUID_REQ: 0x004,
  CPUID_RESP: 0x005,
  AP_RESET_HOLD_REQ: 0x006,
  AP_RESET_HOLD_RESP: 0x007,
  PREFERRED_GPA_REQ: 0x010,
  PREFERRED_GPA_RESP: 0x011,
  REGISTER_GPA_REQ: 0x012,
  REGISTER_GPA_RESP: 0x013,
  PSC_REQ: 0x014,
  PSC_RESP: 0x015,
  VMPL_REQ: 0x016,
  VMPL_RESP: 0x017,
  HV_FEATURES_REQ: 0x080,
  HV_FEATURES_RESP: 0x081,
  TERMINATE: 0x100,
} as const;

/** The code of an MSR value; 0 means that it is the address of a GHCB. */
export const ghcbMsrCode = (value: bigint): number => Number(value & 0xfffn);

/** The 52 bits above the code. */
export const ghcbMsrData = (value: bigint): bigint => value >> 12n;

export const ghcbMsr = (code: number, data: bigint): bigint => (data << 12n) | BigInt(code);

/** The answer to SEV_INFO_REQ: protocol versions and position of the C-bit. */
export const ghcbMsrSevInfo = (cBit: number): bigint =>
  (BigInt(GHCB_PROTOCOL.MAX) << 48n) |
  (BigInt(GHCB_PROTOCOL.MIN) << 32n) |
  (BigInt(cBit) << 24n) |
  BigInt(GHCB_MSR.SEV_INFO_RESP);

/** A CPUID request: its function, and which register (0 EAX .. 3 EDX) is wanted. */
export const decodeGhcbMsrCpuid = (value: bigint): { readonly function: number; readonly register: number } => ({
  function: Number(value >> 32n),
  register: Number((value >> 30n) & 3n),
});

export const ghcbMsrCpuidResponse = (register: number, value: number): bigint =>
  (BigInt(value >>> 0) << 32n) | (BigInt(register) << 30n) | BigInt(GHCB_MSR.CPUID_RESP);
