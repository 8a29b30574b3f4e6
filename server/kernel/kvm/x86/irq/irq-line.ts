/** Who drives a GSI (`KVM_*_IRQ_SOURCE_ID`, kvm_host.h and irq.h of 6.17): a line is high while any source holds it. */
export const IRQ_SOURCE = { USERSPACE: 0, IRQFD_RESAMPLE: 1, PIT: 2 } as const;
export type IrqSource = (typeof IRQ_SOURCE)[keyof typeof IRQ_SOURCE];

/** The sources that hold each pin of a chip high. */
export class IrqLines {
  private readonly held: Uint8Array;

  constructor(pins: number) {
    this.held = new Uint8Array(pins);
  }

  /** `__kvm_irq_line_state`. @returns the line's level after it */
  set(pin: number, source: IrqSource, level: boolean): boolean {
    const bit = 1 << source;
    const held = this.held[pin] ?? 0;
    const next = level ? held | bit : held & ~bit;
    this.held[pin] = next;
    return next !== 0;
  }
}
