/** Where things are in the guest's physical address space. VMM and guest agree on it, as they would by ACPI tables. */

const PAGE = 0x1000;

/** Guest memory. The first 640 KiB and what is above 1 MiB are two memory slots, as on a PC. */
export const GPA = {
  GDT: 0x1000,
  IDT: 0x2000,
  /** Completions counted, a dword for each queue. */
  COUNTS: 0x3000,
  /** Of the boot processor. */
  ENTRY: 0x4000,
  /** Of the second processor. */
  AP_ENTRY: 0x5000,
  /** Interrupt handlers, `HANDLER_BYTES` each. */
  HANDLERS: 0x6000,
  VC_HANDLER: 0x7000,
  /** Initial stack pointers; stacks grow down into one page each. */
  STACK: 0x9000,
  AP_STACK: 0xa000,
  /** SEV-ES: the pages that are shared with the host, one for each vCPU. */
  GHCB: 0xb000,
  AP_GHCB: 0xc000,
  /** SEV-ES: page tables. */
  PML4: 0x1_0000,
  PDPT: 0x1_1000,
  LOW_PAGE_DIRECTORY: 0x1_2000,
  HIGH_PAGE_DIRECTORY: 0x1_3000,
  LOW_PAGE_TABLE: 0x1_4000,
  END: 0x1_5000,
} as const;

export const HANDLER_BYTES = 0x100;

/** End of the first memory slot, and begin of the second. */
export const LOW_MEMORY_END = 0xa_0000;
export const HIGH_MEMORY = 0x10_0000;

/** Selectors of the GDT. */
export const SELECTOR = { CODE: 0x08, DATA: 0x10 } as const;

/** The local APIC's page and the registers that the driver uses (APM volume 2, 16.3). */
export const LAPIC = {
  BASE: 0xfee0_0000,
  EOI: 0xfee0_00b0,
  SPURIOUS: 0xfee0_00f0,
  /** Software enable, and spurious vector 0xff. */
  ENABLED: 0x1ff,
} as const;

/** The two 8259s. */
export const PIC = { MASTER: 0x20, MASTER_DATA: 0x21, SLAVE_DATA: 0xa1, BASE_VECTOR: 0x20, EOI: 0x20 } as const;

export const SERIAL_PORT = 0x3f8;

/**
 * The NVMe-like controller: BAR 0 with one submission-queue tail doorbell for each queue (stride 8, NVMe base specification
 * 3.1.3.6), and a port that is written whenever an admin command is submitted, as legacy drivers do.
 */
export const NVME = { BAR0: 0xfe80_0000, NOTIFY_PORT: 0xc050 } as const;

/** One queue of the controller. */
export interface Queue {
  readonly name: 'admin' | 'io1' | 'io2';
  /** Guest physical address of its doorbell. */
  readonly doorbell: number;
  /** The vCPU that its completions interrupt. */
  readonly vcpu: 0 | 1;
  /** How a completion reaches that vCPU. */
  readonly interrupt:
    | { readonly kind: 'pic'; readonly gsi: number; readonly pin: number; readonly vector: number }
    | { readonly kind: 'msi'; readonly gsi: number; readonly vector: number };
}

const doorbell = (index: number): number => NVME.BAR0 + PAGE + index * 8;

/** The controller's queues: a legacy interrupt for the admin queue, and a message for each I/O queue. */
export const QUEUES: readonly Queue[] = [
  {
    name: 'admin',
    doorbell: doorbell(0),
    vcpu: 0,
    interrupt: { kind: 'pic', gsi: 5, pin: 5, vector: PIC.BASE_VECTOR + 5 },
  },
  { name: 'io1', doorbell: doorbell(1), vcpu: 0, interrupt: { kind: 'msi', gsi: 24, vector: 0x41 } },
  { name: 'io2', doorbell: doorbell(2), vcpu: 1, interrupt: { kind: 'msi', gsi: 25, vector: 0x42 } },
];

/** What the driver says on the serial port when a vCPU is ready; a completion is the queue's letter and the count, a digit. */
export const SERIAL = {
  READY: 'R',
  letter: (queue: number): string => String.fromCharCode('A'.charCodeAt(0) + queue),
} as const;
