import { kvm_pic_state } from '../../../uapi/irq-structs.js';
import type { StructValue } from '../../../uapi/struct.js';
import { IrqLines, type IrqSource } from './irq-line.js';

/** Pins of the two chips together. */
export const PIC_NUM_PINS = 16;
const CHIP_PINS = 8;
/** The slave's output is wired to this pin of the master. */
const CASCADE = 2;
/** Lines that can be made level triggered; 0, 1, 2, 8 and 13 never can. */
const ELCR_MASK = { master: 0xf8, slave: 0xde } as const;

/** What the PICs tell the rest of the VM. */
export interface PicOutput {
  /** The master's INTR line went up: the vCPU whose LVT0 takes it is woken (`pic_unlock`). */
  wake(): void;
  /** `kvm_notify_acked_irq`. @param pin 0 to 15 */
  acked(pin: number): void;
  /** `kvm_fire_mask_notifiers`. */
  masked(pin: number, mask: boolean): void;
  /** A vCPU takes the PIC's interrupts: an edge that a reset throws away counts as acknowledged. */
  readonly taken: boolean;
}

/** `struct kvm_kpic_state`: one 8259 of the pair, with what user space sees of it. */
class Pic {
  readonly state: StructValue<typeof kvm_pic_state>;

  constructor(
    readonly first: 0 | 8,
    elcrMask: number,
    private readonly output: PicOutput,
  ) {
    this.state = { ...kvm_pic_state.decode(new Uint8Array(kvm_pic_state.size)), elcr_mask: elcrMask };
  }

  /** `pic_set_irq1`. @returns 1 raised or no change of state, 0 coalesced, -1 masked */
  setIrq(irq: number, level: boolean): number {
    const { state } = this;
    const mask = 1 << irq;
    let result = 1;
    if (!level) {
      if (state.elcr & mask) state.irr &= ~mask;
      state.last_irr &= ~mask;
    } else {
      if (state.elcr & mask || !(state.last_irr & mask)) {
        result = state.irr & mask ? 0 : 1;
        state.irr |= mask;
      }
      state.last_irr |= mask;
    }
    return state.imr & mask ? -1 : result;
  }

  /** Edges that wait. */
  get pendingEdges(): number {
    return this.state.irr & ~this.state.elcr;
  }

  /** `get_priority`: of the highest line in `mask`, 0 to 7; 8 if there is none. */
  private priority(mask: number): number {
    if (mask === 0) return CHIP_PINS;
    let priority = 0;
    while (!(mask & (1 << ((priority + this.state.priority_add) & 7)))) priority++;
    return priority;
  }

  /** `pic_get_irq`: the line that asks for service; -1: none above what is in service. */
  wanted(): number {
    const { state } = this;
    const priority = this.priority(state.irr & ~state.imr);
    if (priority === CHIP_PINS) return -1;
    // In special fully nested mode the master looks at new requests of the slave while one is in service.
    const nested = state.special_fully_nested_mode !== 0 && this.first === 0;
    const inService = nested ? state.isr & ~(1 << CASCADE) : state.isr;
    return priority < this.priority(inService) ? (priority + state.priority_add) & 7 : -1;
  }

  /** `pic_intack`. */
  intack(irq: number): void {
    const { state } = this;
    state.isr |= 1 << irq;
    // A level stays requested for as long as the line is high.
    if (!(state.elcr & (1 << irq))) state.irr &= ~(1 << irq);
    if (state.auto_eoi === 0) return;
    if (state.rotate_on_auto_eoi !== 0) state.priority_add = (irq + 1) & 7;
    this.clearIsr(irq);
  }

  /** `pic_clear_isr`: a notifier may change this PIC's lines, so the state is complete before it runs. */
  clearIsr(irq: number): void {
    this.state.isr &= ~(1 << irq);
    this.output.acked(this.first + irq);
  }

  /** `kvm_pic_reset`, by ICW1. */
  reset(init4: number): void {
    const { state } = this;
    const edges = state.irr & ~state.elcr;
    state.init4 = init4;
    state.last_irr = 0;
    state.irr &= state.elcr;
    state.imr = 0;
    state.priority_add = 0;
    state.special_mask = 0;
    state.read_reg_select = 0;
    if (init4 === 0) {
      state.special_fully_nested_mode = 0;
      state.auto_eoi = 0;
    }
    state.init_state = 1;
    if (!this.output.taken) return;
    for (let irq = 0; irq < CHIP_PINS; irq++) if (edges & (1 << irq)) this.clearIsr(irq);
  }

  /** OCW2. @returns true if the wanted interrupt may have changed */
  endOfInterrupt(value: number): boolean {
    const { state } = this;
    const command = value >> 5;
    const irq = value & 7;
    switch (command) {
      case 0:
      case 4:
        state.rotate_on_auto_eoi = command >> 2;
        return false;
      case 1:
      case 5: {
        const priority = this.priority(state.isr);
        if (priority === CHIP_PINS) return false;
        const ended = (priority + state.priority_add) & 7;
        if (command === 5) state.priority_add = (ended + 1) & 7;
        this.clearIsr(ended);
        return true;
      }
      case 3:
        this.clearIsr(irq);
        return true;
      case 6:
        state.priority_add = (irq + 1) & 7;
        return true;
      case 7:
        state.priority_add = (irq + 1) & 7;
        this.clearIsr(irq);
        return true;
      default:
        return false;
    }
  }

  /** OCW3. */
  control(value: number): void {
    const { state } = this;
    if (value & 0x04) state.poll = 1;
    if (value & 0x02) state.read_reg_select = value & 1;
    if (value & 0x40) state.special_mask = (value >> 5) & 1;
  }

  /** The odd port: OCW1 (mask), or ICW2 to ICW4 of an initialisation. @returns true if the mask was written */
  writeData(value: number): boolean {
    const { state } = this;
    switch (state.init_state) {
      case 1:
        state.irq_base = value & 0xf8;
        state.init_state = 2;
        return false;
      case 2:
        state.init_state = state.init4 !== 0 ? 3 : 0;
        return false;
      case 3:
        state.special_fully_nested_mode = (value >> 4) & 1;
        state.auto_eoi = (value >> 1) & 1;
        state.init_state = 0;
        return false;
      default: {
        const changed = state.imr ^ value;
        state.imr = value;
        for (let irq = 0; irq < CHIP_PINS; irq++)
          if (changed & (1 << irq)) this.output.masked(this.first + irq, (value & (1 << irq)) !== 0);
        return true;
      }
    }
  }
}

const pinsOf = (mask: number): number[] =>
  Array.from({ length: PIC_NUM_PINS }, (_, pin) => pin).filter((pin) => mask & (1 << pin));

/** `struct kvm_pic`: the cascaded pair of 8259 interrupt controllers (arch/x86/kvm/i8259.c). */
export class I8259 {
  private readonly master: Pic;
  private readonly slave: Pic;
  private readonly lines = new IrqLines(PIC_NUM_PINS);
  private line = false;
  /** Lines that had an edge since somebody began to watch; null: nobody does. */
  watched: Set<number> | null = null;

  constructor(private readonly output: PicOutput) {
    this.master = new Pic(0, ELCR_MASK.master, output);
    this.slave = new Pic(8, ELCR_MASK.slave, output);
  }

  /** INTR: somebody has to fetch a vector. */
  get intr(): boolean {
    return this.line;
  }

  /**
   * `kvm_pic_set_irq`. @param pin 0 to 15
   * @returns 1 delivered, 0 coalesced, -1 masked (`kvm_irq_level.status`)
   */
  setIrq(pin: number, source: IrqSource, level: boolean): number {
    const high = this.lines.set(pin, source, level);
    const chip = this.chip(pin >> 3);
    const status = chip.setIrq(pin & 7, high);
    if (high && chip.pendingEdges & (1 << (pin & 7))) this.watched?.add(pin);
    this.update();
    return status;
  }

  /** `kvm_pic_read_irq`: the CPU's two INTA cycles. @returns the vector; line 7's when the request has gone away meanwhile */
  readIrq(): number {
    this.line = false;
    const irq = this.master.wanted();
    if (irq >= 0) this.master.intack(irq);
    const vector = irq === CASCADE ? this.readSlave() : this.master.state.irq_base + (irq >= 0 ? irq : 7);
    this.update();
    return vector;
  }

  private readSlave(): number {
    const irq = this.slave.wanted();
    if (irq >= 0) this.slave.intack(irq);
    return this.slave.state.irq_base + (irq >= 0 ? irq : 7);
  }

  /** Write of a byte to 0x20, 0x21, 0xa0, 0xa1 (`pic_ioport_write`), 0x4d0 or 0x4d1 (ELCR). */
  write(port: number, value: number): void {
    if (port >= 0x4d0) {
      const { state } = this.chip(port & 1);
      state.elcr = value & state.elcr_mask;
      return;
    }
    const chip = this.chip(port >> 7);
    if (port & 1) {
      if (chip.writeData(value)) this.update();
    } else if (value & 0x10) chip.reset(value & 1);
    else if (value & 0x08) chip.control(value);
    else if (chip.endOfInterrupt(value)) this.update();
  }

  /** Read of a byte from one of those ports. */
  read(port: number): number {
    if (port >= 0x4d0) return this.chip(port & 1).state.elcr;
    const chip = this.chip(port >> 7);
    if (chip.state.poll !== 0) {
      chip.state.poll = 0;
      return this.poll(chip);
    }
    if (port & 1) return chip.state.imr;
    return chip.state.read_reg_select !== 0 ? chip.state.isr : chip.state.irr;
  }

  /** `pic_poll_read`: a poll acknowledges and ends the interrupt at once. */
  private poll(chip: Pic): number {
    const irq = chip.wanted();
    if (irq < 0) {
      this.update();
      return 7;
    }
    if (chip === this.slave) {
      this.master.state.isr &= ~(1 << CASCADE);
      this.master.state.irr &= ~(1 << CASCADE);
    }
    chip.state.irr &= ~(1 << irq);
    chip.clearIsr(irq);
    if (chip === this.slave || irq !== CASCADE) this.update();
    return irq;
  }

  /** Pins with an edge that nobody has acknowledged; the cascade is the slave's. */
  get pendingEdges(): Set<number> {
    return new Set(pinsOf((this.master.pendingEdges & ~(1 << CASCADE)) | (this.slave.pendingEdges << CHIP_PINS)));
  }

  /** Pins in service. */
  get inService(): Set<number> {
    return new Set(pinsOf(this.master.state.isr | (this.slave.state.isr << CHIP_PINS)));
  }

  /** KVM_GET_IRQCHIP. */
  getState(chip: 'master' | 'slave'): Uint8Array {
    return kvm_pic_state.encode(this[chip].state);
  }

  /** KVM_SET_IRQCHIP, with `kvm_pic_update_irq` behind it. */
  setState(chip: 'master' | 'slave', bytes: Uint8Array): void {
    Object.assign(this[chip].state, kvm_pic_state.decode(bytes));
    this.update();
  }

  private chip(index: number): Pic {
    return index === 0 ? this.master : this.slave;
  }

  /** `pic_update_irq`: whenever the wanted interrupt may have changed. */
  private update(): void {
    if (this.slave.wanted() >= 0) {
      this.master.setIrq(CASCADE, true);
      this.master.setIrq(CASCADE, false);
    }
    const before = this.line;
    this.line = this.master.wanted() >= 0;
    if (this.line && !before) this.output.wake();
  }
}
