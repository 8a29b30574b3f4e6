import { Failure, type Result } from '../kernel/failure.js';

/**
 * What a guest is beside its memory, as a list of parts in the order in which they are put back. The bytes of a part are what
 * the kernel's own ioctl gave and takes, so that this file knows no registers.
 */
export const PART = {
  /** `request` is a KVM_SET_* ioctl of the VM. */
  VM_IOCTL: 1,
  /** `request` is a KVM_SET_* ioctl of vCPU `index`. */
  VCPU_IOCTL: 2,
  /** KVM_SET_TSC_KHZ of vCPU `index`: `request` is the frequency. */
  VCPU_TSC_KHZ: 3,
  /** MSRs of vCPU `index`: number and value, 64 bits each. */
  VCPU_MSRS: 4,
  /** The save area of vCPU `index`: header and data of its packet. */
  SAVE_AREA: 5,
  /** What KVM keeps of a SEV-ES vCPU beside it: GHCB MSR, AP reset hold, first SIPI received, CR0, CR4, EFER, 64 bits each. */
  SEV_VCPU: 6,
  /** AP jump table and GHCB protocol of a SEV guest, 64 bits each. */
  SEV_VM: 7,
  /** Frames that the guest shares: first and end, 64 bits each. */
  SHARED_FRAMES: 8,
  /** Device wiring: see `encodeWiring`. */
  IOEVENTFDS: 9,
  IRQFDS: 10,
  /** TSC of each vCPU at one moment, 64 bits each. */
  TSC: 11,
  /** `kvm_msr_filter` without addresses, then the bitmaps of its ranges. */
  MSR_FILTER: 12,
  /** The page of the coalesced MMIO ring. */
  COALESCED_RING: 13,
  /** Of vCPU `index`: triple fault; KVM_INTERRUPT's vector, vector of KVM_EXIT_IOAPIC_EOI, each plus one; KVM_EXIT_TPR_ACCESS. */
  VCPU_PENDING: 14,
  /** `kvm_pit_state2`. */
  PIT: 15,
} as const;
export type PartKind = (typeof PART)[keyof typeof PART];

export interface StatePart {
  readonly kind: PartKind;
  /** Of the vCPU. */
  readonly index: number;
  readonly request: number;
  readonly bytes: Uint8Array;
}

const HEAD_BYTES = 16;
const KINDS: readonly number[] = Object.values(PART);
const isPartKind = (kind: number): kind is PartKind => KINDS.includes(kind);

/** Each part: kind, index, request, length, as 32-bit little-endian numbers; then its bytes. */
export const encodeParts = (parts: readonly StatePart[]): Uint8Array => {
  const out = new Uint8Array(parts.reduce((sum, { bytes }) => sum + HEAD_BYTES + bytes.length, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const { kind, index, request, bytes } of parts) {
    for (const [word, value] of [kind, index, request, bytes.length].entries()) view.setUint32(at + 4 * word, value, true);
    out.set(bytes, at + HEAD_BYTES);
    at += HEAD_BYTES + bytes.length;
  }
  return out;
};

const malformed = (at: number): Failure =>
  new Failure('EINVAL', 'GUEST_STATE_MALFORMED', 'server/migration', { offset: String(at) });

/** The parts of what `encodeParts` gave; EINVAL for anything else. */
export const decodeParts = (state: Uint8Array): Result<StatePart[]> => {
  const view = new DataView(state.buffer, state.byteOffset, state.length);
  const parts: StatePart[] = [];
  for (let at = 0; at < state.length; ) {
    if (at + HEAD_BYTES > state.length) return malformed(at);
    const kind = view.getUint32(at, true);
    const length = view.getUint32(at + 12, true);
    const end = at + HEAD_BYTES + length;
    if (!isPartKind(kind) || end > state.length) return malformed(at);
    const bytes = state.slice(at + HEAD_BYTES, end);
    parts.push({ kind, index: view.getUint32(at + 4, true), request: view.getUint32(at + 8, true), bytes });
    at = end;
  }
  return parts;
};

/** 64-bit numbers as bytes. */
export const words = (values: readonly bigint[]): Uint8Array => new Uint8Array(BigUint64Array.from(values).buffer);

export const fromWords = (bytes: Uint8Array): bigint[] => [
  ...new BigUint64Array(bytes.slice(0, bytes.length - (bytes.length % 8)).buffer),
];
