/** The local APIC's registers and their bits, by offset in its page (arch/x86/include/asm/apicdef.h; Intel SDM vol. 3, 12.4). */

export const APIC = {
  ID: 0x20,
  LVR: 0x30,
  TASKPRI: 0x80,
  ARBPRI: 0x90,
  PROCPRI: 0xa0,
  EOI: 0xb0,
  LDR: 0xd0,
  DFR: 0xe0,
  SPIV: 0xf0,
  ISR: 0x100,
  TMR: 0x180,
  IRR: 0x200,
  ESR: 0x280,
  LVTCMCI: 0x2f0,
  ICR: 0x300,
  ICR2: 0x310,
  LVTT: 0x320,
  LVTTHMR: 0x330,
  LVTPC: 0x340,
  LVT0: 0x350,
  LVT1: 0x360,
  LVTERR: 0x370,
  TMICT: 0x380,
  TMCCT: 0x390,
  TDCR: 0x3e0,
  SELF_IPI: 0x3f0,
} as const;

/** Bytes of the page that KVM_GET_LAPIC shows (KVM_APIC_REG_SIZE). */
export const KVM_APIC_REG_SIZE = 0x400;
/** Words of 32 vectors in ISR, TMR and IRR, 16 bytes apart. */
export const APIC_ISR_NR = 8;

export const APIC_DEFAULT_PHYS_BASE = 0xfee0_0000;
export const LAPIC_MMIO_LENGTH = 0x1000;

/** Version of Xeon and Pentium 4 APICs; the number of LVT entries less one is in bits 16-23. */
export const APIC_VERSION = 0x14;
export const APIC_LVR_DIRECTED_EOI = 1 << 24;

export const APIC_SPIV_APIC_ENABLED = 1 << 8;
export const APIC_SPIV_DIRECTED_EOI = 1 << 12;

export const APIC_DFR_FLAT = 0xffff_ffff;
export const APIC_DFR_CLUSTER = 0x0fff_ffff;

/** Broadcast destinations: xAPIC's 8-bit one, x2APIC's 32-bit one. */
export const APIC_BROADCAST = 0xff;
export const X2APIC_BROADCAST = 0xffff_ffff;

export const APIC_VECTOR_MASK = 0xff;
export const APIC_MODE_MASK = 0x700;
export const APIC_DEST_LOGICAL = 1 << 11;
export const APIC_ICR_BUSY = 1 << 12;
const APIC_INPUT_POLARITY = 1 << 13;
export const APIC_INT_ASSERT = 1 << 14;
export const APIC_INT_LEVELTRIG = 1 << 15;
export const APIC_SHORT_MASK = 0xc0000;

const APIC_LVT_SEND_PENDING = 1 << 12;
const APIC_LVT_REMOTE_IRR = 1 << 14;
export const APIC_LVT_LEVEL_TRIGGER = 1 << 15;
export const APIC_LVT_MASKED = 1 << 16;

/** Timer mode, bits 17 and 18 of LVTT. */
export const APIC_LVT_TIMER = { ONESHOT: 0, PERIODIC: 1 << 17, TSCDEADLINE: 2 << 17 } as const;

/** Delivery mode, bits 8-10 of ICR, LVT entries and MSI data. */
export const APIC_DM = {
  FIXED: 0x000,
  LOWEST: 0x100,
  SMI: 0x200,
  REMRD: 0x300,
  NMI: 0x400,
  INIT: 0x500,
  STARTUP: 0x600,
  EXTINT: 0x700,
} as const;

/** Destination shorthand, bits 18-19 of ICR. */
export const APIC_DEST_SHORTHAND = { NONE: 0x00000, SELF: 0x40000, ALLINC: 0x80000, ALLBUT: 0xc0000 } as const;

/** MSRs 0x800 to 0x8ff are the registers in x2APIC mode. */
export const APIC_BASE_MSR = 0x800;
/** Bits of ICR that must be zero in x2APIC mode: 13, 16, 17, 20-31. */
export const X2APIC_ICR_RESERVED_BITS = 0xfff3_2000n;

/** LVT entries by index (`enum lapic_lvt_entry`); CMCI exists only with MCG_CMCI_P in MCG_CAP. */
export const LVT_REGISTERS: readonly number[] = [
  APIC.LVTT,
  APIC.LVTTHMR,
  APIC.LVTPC,
  APIC.LVT0,
  APIC.LVT1,
  APIC.LVTERR,
  APIC.LVTCMCI,
];
/** LVT entries without CMCI. */
export const LVT_ENTRIES = 6;

const LVT_MASK = APIC_LVT_MASKED | APIC_LVT_SEND_PENDING | APIC_VECTOR_MASK;
const LINT_MASK = LVT_MASK | APIC_MODE_MASK | APIC_INPUT_POLARITY | APIC_LVT_REMOTE_IRR | APIC_LVT_LEVEL_TRIGGER;
/** Bits that can be written, by index of the LVT entry; the timer's mode bits come from the guest's CPUID. */
export const LVT_WRITABLE: readonly number[] = [
  LVT_MASK,
  LVT_MASK | APIC_MODE_MASK,
  LVT_MASK | APIC_MODE_MASK,
  LINT_MASK,
  LINT_MASK,
  LVT_MASK,
  LVT_MASK | APIC_MODE_MASK,
];
