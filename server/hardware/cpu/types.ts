/**
 * What a guest CPU and its surroundings say to each other: the memory it reaches, the events it stops for (the exits
 * of AMD SVM, APM volume 2 chapter 15), and the bus on which a single instruction is emulated.
 */
import type { Frame, MemoryKey } from '../dram.js';
import type { Gpa } from '../units.js';

/** How guest-physical memory is reached. */
export type MemoryAccess = 'read' | 'write' | 'execute';

/** A guest page the CPU may keep in its TLB until `Cpu.flushTlb`: a frame and the key to look through. */
export interface MappedPage {
  readonly kind: 'mapped';
  readonly frame: Frame;
  readonly key: MemoryKey | null;
  /** False: the first write must ask `map` again with access 'write' (dirty log, copy on write). */
  readonly writable: boolean;
}

/**
 * The nested page table has no translation that allows the access. Whoever implements `PhysicalMemory` may return an
 * object with more fields; the exit carries the same object.
 */
export interface NestedFault {
  readonly kind: 'nested-fault';
  /**
   * The nested entry is marked as MMIO (reserved bit set): a guest with encrypted state gets #VC, and `Cpu.emulate`
   * sends the access to its bus.
   */
  readonly mmio: boolean;
}

/** Guest-physical memory as the nested page tables give it. The kernel implements it. */
export interface PhysicalMemory {
  /** @param address the page that holds it is wanted; the C-bit or shared bit has been removed. */
  map(address: Gpa, access: MemoryAccess, encrypted: boolean): MappedPage | NestedFault;
}

/**
 * What the reverse map says of an access: nothing; that the guest has not validated the page (#VC); or that it is no page for it
 * (#NPF).
 */
export type ReverseMapVerdict = 'allowed' | 'not-validated' | 'fault';

/** The reverse map of SEV-SNP, which the CPU consults with every translation (APM volume 2, 15.36). */
export interface ReverseMap {
  /** The guest that runs is an SNP guest, and so has PVALIDATE and RMPADJUST. */
  readonly snp: boolean;
  /** @param page the guest-physical page that the nested page tables have translated to `frame` */
  check(frame: Frame, page: Gpa, access: MemoryAccess, encrypted: boolean, user: boolean): ReverseMapVerdict;
  /** @returns EAX; `changed` false: CF */
  pvalidate(frame: Frame, page: Gpa, large: boolean, validate: boolean): { readonly result: number; readonly changed: boolean };
  /** @param attributes RDX: VMPL in bits 7:0, permissions in 15:8, and whether the page is a save area in 16. @returns EAX */
  rmpadjust(frame: Frame, large: boolean, attributes: number): number;
}

/**
 * Where in an address memory encryption is asked for. SEV: the C-bit of a page-table entry; page tables (long and
 * PAE mode) and instruction fetches are always encrypted, and so is everything while paging is off or has no room for
 * the bit (APM volume 2, 15.34.5). TDX: the shared bit of a GPA, which turns encryption off.
 */
export type MemoryEncryption =
  | { readonly kind: 'none' }
  | { readonly kind: 'sev'; readonly cBit: number }
  | { readonly kind: 'tdx'; readonly sharedBit: number };

/** What the CPU model can do, as far as control registers and paging depend on it. */
export interface CpuFeatures {
  /** MAXPHYADDR, without the C-bit's reduction. */
  readonly physicalAddressBits: number;
  /** Bits of CR4 whose setting is #GP. */
  readonly cr4Reserved: number;
  /** 1 GiB pages in long mode. */
  readonly gigabytePages: boolean;
  /** EFER.NXE may be set, so bit 63 of an entry has a meaning. */
  readonly noExecute: boolean;
}

/**
 * Which events end `Cpu.run` although the guest could go on. IN, OUT, CPUID, HLT, INVD, WBINVD, MONITOR, MWAIT, RDPMC,
 * VMMCALL, XSETBV, and every MSR that `CpuState.readMsr` does not know always do.
 */
export interface Intercepts {
  /** Bit n: exception vector n exits instead of going through the guest's IDT. */
  readonly exceptions: number;
  readonly pause: boolean;
  readonly rdtsc: boolean;
  /** Exit after a write that changed CR8, for a kernel that keeps the TPR elsewhere. */
  readonly cr8Write: boolean;
  /** SEV-ES write traps: exit after a write of CR0, CR4, CR8 or EFER, which is done. */
  readonly writeTraps: boolean;
  /** Exit with `debug` after every instruction. */
  readonly singleStep: boolean;
  /**
   * The MSR permission map, for MSRs that the CPU holds itself (RDMSR and WRMSR ask it each time): true exits with
   * `rdmsr` or `wrmsr` although `CpuState` knows the MSR. Absent: none does. Writes of EFER exit in any case, but for traps.
   */
  readonly msr?: (index: number, write: boolean) => boolean;
  /**
   * Where a non-automatic exit goes (APM volume 2, 15.35.4): to the hypervisor, or, with encrypted state, to the
   * guest as #VC with the exit code as error code.
   */
  readonly nonAutomatic: 'exit' | 'vc';
  /**
   * SEV_FEATURES has DebugSwap: the save area holds all debug registers, so the guest may have DR7 for itself. Absent: an
   * access to DR7 is #VC where the state is encrypted.
   */
  readonly debugSwap?: boolean;
}

/** SVM exit codes, as #VC delivers them in its error code. Source: APM volume 2, appendix C. */
export const SvmExitCode = {
  READ_DR7: 0x27,
  WRITE_DR7: 0x37,
  RDTSC: 0x6e,
  RDPMC: 0x6f,
  CPUID: 0x72,
  INVD: 0x76,
  IOIO: 0x7b,
  MSR: 0x7c,
  VMMCALL: 0x81,
  RDTSCP: 0x87,
  WBINVD: 0x89,
  MONITOR: 0x8a,
  MWAIT: 0x8b,
  XSETBV: 0x8d,
  NPF: 0x400,
  /** Only in #VC: the guest has not accepted the page by PVALIDATE [M]. */
  PAGE_NOT_VALIDATED: 0x404,
} as const;

/** An event on its way through the IVT or IDT, as EVENTINJ and EXITINTINFO hold it. */
export interface EventInfo {
  readonly type: 'interrupt' | 'nmi' | 'exception' | 'software';
  readonly vector: number;
  readonly errorCode: number | null;
}

/** The nested page tables stopped an access; nothing of the instruction (or event delivery) has happened. */
export interface NestedFaultExit {
  readonly kind: 'nested-fault';
  /** Byte address of the access, without C-bit or shared bit. */
  readonly gpa: Gpa;
  readonly access: MemoryAccess;
  readonly encrypted: boolean;
  /** True: the access was the guest's own page walk. */
  readonly pageWalk: boolean;
  /** CPL 3 made the access. */
  readonly user: boolean;
  /** The reverse map refuses what the nested page tables allow. */
  readonly rmp: boolean;
  readonly fault: NestedFault;
  /** The event whose delivery was under way (EXITINTINFO). It has to be injected again, but for INT n: that is executed again. */
  readonly delivering: EventInfo | null;
}

/**
 * Why `Cpu.run` returned. Unless said otherwise RIP is on the instruction, nothing of it has happened, and
 * `Cpu.skipInstruction` steps over it.
 */
export type CpuExit =
  /** The slice is over. RIP is on the next instruction. */
  | { readonly kind: 'budget' }
  /** `value`: what OUT writes. String forms are done by `Cpu.emulate`. */
  | {
      readonly kind: 'io';
      readonly direction: 'in' | 'out';
      readonly port: number;
      readonly size: 1 | 2 | 4;
      readonly string: boolean;
      readonly value: number;
    }
  | NestedFaultExit
  | { readonly kind: 'hlt' }
  | { readonly kind: 'pause' }
  /** EAX and ECX hold leaf and subleaf. */
  | { readonly kind: 'cpuid' }
  | { readonly kind: 'rdmsr'; readonly index: number }
  | { readonly kind: 'wrmsr'; readonly index: number; readonly value: bigint }
  | { readonly kind: 'rdtsc'; readonly withAux: boolean }
  | { readonly kind: 'rdpmc' }
  | { readonly kind: 'xsetbv'; readonly index: number; readonly value: bigint }
  | { readonly kind: 'vmmcall'; readonly instruction: 'vmmcall' | 'vmcall' }
  /** RIP is past VMGEXIT. The GHCB MSR is `state.ghcb`. */
  | { readonly kind: 'vmgexit' }
  /** RAX selects the leaf; RCX is the register mask. */
  | { readonly kind: 'tdcall' }
  | { readonly kind: 'wbinvd' | 'invd' | 'monitor' | 'mwait' }
  /** RIP is past the write, which is done. */
  | { readonly kind: 'cr8-write'; readonly previous: number }
  /** SEV-ES traps: RIP is past the write, which is done. */
  | { readonly kind: 'write-trap'; readonly register: 'cr0' | 'cr4' | 'cr8' | 'efer' }
  /** An exception that is intercepted: not delivered. CR2 has been set for a page fault. */
  | { readonly kind: 'exception'; readonly vector: number; readonly errorCode: number | null }
  /** Single step or a breakpoint, for `Intercepts.singleStep` or an intercepted #DB. `dr6` has the reasons. */
  | { readonly kind: 'debug'; readonly dr6: number }
  /** The guest can take an interrupt (an NMI) now, and `Cpu.requestWindow` asked to be told. */
  | { readonly kind: 'interrupt-window' | 'nmi-window' }
  /** Triple fault. */
  | { readonly kind: 'shutdown' }
  /** An instruction outside the subset, with its bytes from RIP (at most 15). */
  | { readonly kind: 'unsupported'; readonly bytes: Uint8Array };

/**
 * Where the accesses of one emulated instruction go that are not RAM. What an attempt did that ends in 'pending' or
 * 'exit' has to be forgotten: the instruction runs again from its start.
 */
export interface EmulationBus {
  /** A load of at most 8 bytes inside one page. Null: no data yet. */
  readMmio(address: Gpa, size: number): Uint8Array | null;
  /** A store of at most 8 bytes inside one page. */
  writeMmio(address: Gpa, bytes: Uint8Array): void;
  /**
   * INS: what has been read and not been taken by an iteration before, `all` of it or one element of `size` bytes; where nothing
   * is left, `count` elements are read first. Null: no data yet.
   */
  readPort(port: number, size: 1 | 2 | 4, count: number, all: boolean): Uint8Array | null;
  /** OUTS: one element. */
  writePort(port: number, size: 1 | 2 | 4, bytes: Uint8Array): void;
}

/** What became of one emulated instruction, or of one iteration of a repeated one. */
export type EmulationResult =
  /**
   * RIP is past the instruction, or still on it where it `repeats` and has not looked yet whether that was all. `traced`: RFLAGS.TF
   * was set before it, so that a single step ends here.
   */
  | { readonly kind: 'retired'; readonly repeats: boolean; readonly traced: boolean }
  /** The bus had no data: nothing has changed. */
  | { readonly kind: 'pending' }
  /** The guest got an exception instead (its handler is next). */
  | { readonly kind: 'exception'; readonly vector: number }
  /** Something else has to be done first, as after `Cpu.run`: nothing has changed. */
  | { readonly kind: 'exit'; readonly exit: CpuExit };

/** A segment register with its hidden part, in the shape of kvm_segment. Flags are 0 or 1. */
export interface Segment {
  base: bigint;
  /** In bytes, after scaling by G. */
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

export type SegmentName = 'es' | 'cs' | 'ss' | 'ds' | 'fs' | 'gs' | 'tr' | 'ldt';

/** GDTR or IDTR, in the shape of kvm_dtable. */
export interface DescriptorTable {
  base: bigint;
  limit: number;
}

/** The general registers, in the shape of kvm_regs. */
export interface GeneralRegisters {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
}

/** Result of a walk without side effects, as KVM_TRANSLATE wants it. */
export interface Translation {
  readonly gpa: Gpa;
  readonly writable: boolean;
  readonly user: boolean;
}
