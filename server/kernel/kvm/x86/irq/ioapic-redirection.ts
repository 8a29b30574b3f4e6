/** Bits of the low word of a redirection entry (82093AA datasheet, 3.2.4). */
const VECTOR = 0xff;
const DELIVERY_MODE = 0x700;
const DEST_LOGICAL = 1 << 11;
const DELIVERY_STATUS = 1 << 12;
const REMOTE_IRR = 1 << 14;
const LEVEL = 1 << 15;
const MASK = 1 << 16;
/** The guest cannot write these. */
const READ_ONLY = REMOTE_IRR | DELIVERY_STATUS;

/** `union kvm_ioapic_redirect_entry`, for every pin: two words each. */
export class RedirectionTable {
  private readonly words: Uint32Array;

  constructor(private readonly pins: number) {
    this.words = new Uint32Array(pins * 2);
    for (let pin = 0; pin < pins; pin++) this.words[pin * 2] = MASK;
  }

  /** @param half 0: bits 0-31, 1: bits 32-63 */
  word(pin: number, half: number): number {
    return this.words[pin * 2 + half] ?? 0;
  }

  vector(pin: number): number {
    return this.word(pin, 0) & VECTOR;
  }

  /** Out of APIC_DM. */
  deliveryMode(pin: number): number {
    return this.word(pin, 0) & DELIVERY_MODE;
  }

  logical(pin: number): boolean {
    return (this.word(pin, 0) & DEST_LOGICAL) !== 0;
  }

  level(pin: number): boolean {
    return (this.word(pin, 0) & LEVEL) !== 0;
  }

  masked(pin: number): boolean {
    return (this.word(pin, 0) & MASK) !== 0;
  }

  remoteIrr(pin: number): boolean {
    return (this.word(pin, 0) & REMOTE_IRR) !== 0;
  }

  destId(pin: number): number {
    return this.word(pin, 1) >>> 24;
  }

  setRemoteIrr(pin: number, on: boolean): void {
    const low = this.word(pin, 0);
    this.words[pin * 2] = on ? low | REMOTE_IRR : low & ~REMOTE_IRR;
  }

  /** A guest's write. Some guests take it for granted that remote IRR goes away when a pin is made edge triggered. */
  write(pin: number, half: number, value: number): void {
    if (half === 1) {
      this.words[pin * 2 + 1] = value;
      return;
    }
    const kept = this.word(pin, 0) & READ_ONLY;
    this.words[pin * 2] = (value & ~READ_ONLY) | kept;
    if (!this.level(pin)) this.setRemoteIrr(pin, false);
  }

  /** Every entry as its 64 bits. */
  entries(): bigint[] {
    return Array.from({ length: this.pins }, (_, pin) => (BigInt(this.word(pin, 1)) << 32n) | BigInt(this.word(pin, 0)));
  }

  /** Takes over entries as they are, read-only bits too. */
  restore(entries: readonly bigint[]): void {
    entries.forEach((entry, pin) => {
      this.words[pin * 2] = Number(entry & 0xffff_ffffn);
      this.words[pin * 2 + 1] = Number(entry >> 32n);
    });
  }
}
