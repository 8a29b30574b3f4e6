import type { Failure, Result } from '../kernel/failure.js';
import type { BatchMemory } from './batch-room.js';

/** Guests that can be moved; each has a file that says how. */
export const GUEST_KINDS = ['plain', 'sev'] as const;
export type GuestKindName = (typeof GUEST_KINDS)[number];

/** A memory slot, as the destination has to make it. */
export interface SlotDescription {
  readonly id: number;
  /** Guest physical address of its first byte. */
  readonly gpa: number;
  readonly bytes: number;
  /** KVM_MEM bits. */
  readonly flags: number;
  /** Some of it is registered for encryption (KVM_MEMORY_ENCRYPT_REG_REGION): then all of it is pinned at the destination. */
  readonly pinned: boolean;
  /** Where its memory lies in the source's process: slots that share memory there share it here too. */
  readonly userspaceAddress: number;
}

/** A KVM_ENABLE_CAP of the VM. */
export interface CapabilityDescription {
  readonly cap: number;
  readonly argument: bigint;
}

/** `kvm_ioeventfd` without its descriptor. */
export interface IoeventfdDescription {
  readonly address: bigint;
  readonly length: number;
  /** Null: any value. */
  readonly datamatch: bigint | null;
  readonly pio: boolean;
  /** What the eventfd counted when the guest was stopped, and nobody had read: the initial value of the new one. 0 before. */
  readonly count: bigint;
}

/** `kvm_irqfd` without its descriptors. */
export interface IrqfdDescription {
  readonly gsi: number;
  readonly resample: boolean;
  /** Events of the eventfd that had not raised the GSI when the guest was stopped. 0 before. */
  readonly count: bigint;
}

/** Device wiring, for the VMM on the other side to make again. */
export interface WiringDescription {
  readonly ioeventfds: readonly IoeventfdDescription[];
  readonly irqfds: readonly IrqfdDescription[];
}

export interface VcpuDescription {
  /** KVM_CREATE_VCPU's argument. */
  readonly id: number;
  /** `kvm_cpuid2`, as KVM_GET_CPUID2 wrote it. */
  readonly cpuid: Uint8Array;
}

/** What a destination must know before it says yes: enough to make the VM, and to see that it could not. */
export interface GuestDescription extends WiringDescription {
  readonly kind: GuestKindName;
  /** KVM_CREATE_VM's argument. */
  readonly vmType: number;
  /** Encrypted registers (SEV-ES). */
  readonly encryptedState: boolean;
  /** SEV_FEATURES of the save areas. */
  readonly vmsaFeatures: bigint;
  /** In-kernel PICs, IOAPIC and local APICs. */
  readonly irqchip: boolean;
  readonly pit: boolean;
  /** KVM_PIT_SPEAKER_DUMMY. */
  readonly pitSpeaker: boolean;
  /** KVM_SET_BOOT_CPU_ID. */
  readonly bootCpuId: number;
  /** KVM_SET_TSC_KHZ of the VM: what a new vCPU begins with. */
  readonly tscKhz: number;
  readonly capabilities: readonly CapabilityDescription[];
  readonly vcpus: readonly VcpuDescription[];
  readonly slots: readonly SlotDescription[];
  /** Pages outside of pinned slots that were ever touched: so many the destination has to have at least. */
  readonly touchedPages: number;
}

/** Pages of 4 KiB that travel together, all of one kind. */
export interface PageBatch {
  /** `clear`: as the guest left them; `deflated`: the same, compressed. `sealed`: by the platform's firmware, one header for each. */
  readonly form: 'clear' | 'sealed' | 'deflated';
  /** Guest frame numbers. */
  readonly gfns: readonly number[];
  /** Headers of sealed pages, one behind the other. */
  readonly headers: Uint8Array;
  /** Contents, one page behind the other; compressed as a whole where `form` says so. */
  readonly data: Uint8Array;
  /** What `data` is all of, where it is to be released by whoever needs the batch no longer. */
  readonly memory?: BatchMemory;
}

/** Guest frames that follow one another. */
export interface FrameRun {
  readonly first: number;
  readonly count: number;
}

/** Bytes that a batch takes, about. */
export const batchBytes = ({ gfns, headers, data }: PageBatch): number => data.length + headers.length + 8 * gfns.length;

/**
 * Memory of a guest that is to run elsewhere before it is there (post-copy): what the frames held when it was stopped. It stays,
 * whatever becomes of the VM and of its process, until it has been sent or is released.
 */
export interface HeldMemory {
  /** Frames that have not been sent. */
  readonly size: number;
  readonly runs: readonly FrameRun[];
  /** Somebody waits for a frame that has not been sent. */
  readonly urgent: boolean;
  /** Frames that are to go before the others. @returns how many of them had not been sent */
  want(gfns: readonly number[]): number;
  /** At most `pages` pages: those that somebody waits for, else the next. Null: all have been sent. */
  next(pages: number): PageBatch | null;
  release(): void;
}

/**
 * The guest on the source, as the protocol needs it. One implementation for each kind of guest; none of these calls waits,
 * but for `stop`, which calls back.
 */
export interface SourceGuest {
  describe(): GuestDescription;
  /** Begins to track what the guest writes, and opens the session with the target's platform. */
  begin(target: Uint8Array): Result<Uint8Array>;
  /** At most `pages` pages that are to be sent now; null: none is left in this round. */
  next(pages: number): Result<PageBatch | null>;
  /** Ends a round: pages written since they were sent are to be sent again. @returns how many */
  nextRound(): number;
  /** Keeps the vCPUs out of the guest for so many per cent of their time, until the end. */
  throttle(percent: number): void;
  /** Stops the vCPUs under their mutexes, with no I/O half done. `stopped` is called when they have, or why they cannot. */
  stop(stopped: (failure: Failure | null) => void): void;
  /** For people: what `stop` waits for. Null: nothing. */
  readonly waitsFor: string | null;
  /** Takes what `next` would still give, of a stopped guest, and keeps it for later. */
  hold(): Result<HeldMemory>;
  /** Everything beside memory, of a stopped guest; pages it still owes are given by `next`. */
  state(): Result<Uint8Array>;
  /** Makes an entry fail in the machinery (DEACTIVATE): called before Commit leaves. */
  fence(): Failure | null;
  /** The guest runs on here: takes back whatever `begin`, `stop` and `fence` have done. */
  resume(): void;
  /** The destination owns the guest now (SEND_FINISH; the VM is dead, or what its post-move policy says). */
  finish(): void;
}

/** Told of the frames that a guest lacks which runs already. */
export interface OwedFramesHandler {
  /** Somebody touches these frames for the first time. */
  wanted(gfns: readonly number[]): void;
  /** None is missing any more: they have come, or the process has given them up. */
  whole(): void;
}

/** A guest that is being received. */
export interface DestinationGuest {
  /** What the source's platform needs to know of this one. */
  readonly target: Uint8Array;
  begin(opening: Uint8Array): Failure | null;
  /** Takes pages. Once frames are owed, only what is still missing of them: a copy of the others would be old. */
  receive(batch: PageBatch): Failure | null;
  /** These frames follow when the guest runs; what has come of them before is old, and goes. */
  owe(runs: readonly FrameRun[], handler: OwedFramesHandler): Failure | null;
  /** Frames that are owed and have not come. */
  readonly missing: number;
  /** Nobody will send what is missing: whoever touches it gets an error from now on. */
  lose(): void;
  restore(state: Uint8Array): Failure | null;
  /** All is here (RECEIVE_FINISH). Its vCPUs do not run before `release`. */
  prepare(): Failure | null;
  /** Why nobody could run it as it has been sent: the process has closed or changed what was made for it. Null: it could. */
  whyUnfit(): Failure | null;
  release(): void;
  /** Nothing of it stays. */
  destroy(): void;
}

/** Makes room for a guest, or says why there is none. */
export type ReceiveGuest = (description: GuestDescription) => Result<DestinationGuest>;
