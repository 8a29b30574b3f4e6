import { KVM_EXIT, type KvmExitReason } from '../../uapi/constants.js';
import {
  KVM_RUN_SYNC_REGS_OFFSET,
  kvm_run,
  kvm_run__io,
  kvm_run__mmio,
  kvm_run__msr,
  kvm_sync_regs,
} from '../../uapi/kvm-run.js';
import type { Fields, Struct, StructValue, ValueOf } from '../../uapi/struct.js';
import type { RunPages } from '../run-pages.js';

const { fields } = kvm_run;
const SYNC_MASKS_END = fields.kvm_dirty_regs.offset + fields.kvm_dirty_regs.size;

/** What an exit has left for userspace. */
export interface ToldExit {
  readonly reason: number;
  /** The union of what the reasons have to say. */
  readonly details: Uint8Array;
  /** The data page. */
  readonly pio: Uint8Array;
}

/** The union, which is as long as any of its members. */
const UNION = { start: kvm_run__io.fields.direction.offset, end: kvm_run__io.size } as const;

/**
 * `vcpu->run` as the kernel uses it. The page is userspace's as much as the kernel's: what is read here may have been
 * changed at any time, so a value that decides anything is read once.
 */
export class KvmRun {
  constructor(private readonly pages: RunPages) {}

  get exitReason(): number {
    return fields.exit_reason.get(this.pages.run.view, 0);
  }
  set exitReason(reason: KvmExitReason) {
    fields.exit_reason.set(this.pages.run.view, 0, reason);
  }

  /** True: KVM_RUN shall return before it enters the guest. */
  get immediateExit(): boolean {
    return fields.immediate_exit.get(this.pages.run.view, 0) !== 0;
  }

  get requestInterruptWindow(): boolean {
    return fields.request_interrupt_window.get(this.pages.run.view, 0) !== 0;
  }

  get cr8(): bigint {
    return fields.cr8.get(this.pages.run.view, 0);
  }

  /** Whether kvm_valid_regs or kvm_dirty_regs name anything: mostly they do not, and then nobody needs their values. */
  get asksForSyncRegs(): boolean {
    const { view } = this.pages.run;
    for (let at = fields.kvm_valid_regs.offset; at < SYNC_MASKS_END; at += 4) if (view.getUint32(at, true) !== 0) return true;
    return false;
  }

  get validRegs(): bigint {
    return fields.kvm_valid_regs.get(this.pages.run.view, 0);
  }

  get dirtyRegs(): bigint {
    return fields.kvm_dirty_regs.get(this.pages.run.view, 0);
  }
  set dirtyRegs(value: bigint) {
    fields.kvm_dirty_regs.set(this.pages.run.view, 0, value);
  }

  /** `vcpu->run->flags = 0`: there is no SMM, nested guest or bus lock of which it could tell. */
  clearFlags(): void {
    fields.flags.set(this.pages.run.view, 0, 0);
  }

  /** What `post_kvm_run_save` leaves with every exit. */
  save(interruptFlag: boolean, readyForInjection: boolean, cr8: bigint, apicBase: bigint): void {
    const { view } = this.pages.run;
    fields.if_flag.set(view, 0, interruptFlag ? 1 : 0);
    fields.ready_for_interrupt_injection.set(view, 0, readyForInjection ? 1 : 0);
    fields.cr8.set(view, 0, cr8);
    fields.apic_base.set(view, 0, apicBase);
  }

  /** An exit: its reason and its member of the union. */
  exit<F extends Fields>(reason: KvmExitReason, member: Struct<F>, values: Partial<ValueOf<F>>): void {
    this.exitReason = reason;
    member.write(this.pages.run.bytes, values);
  }

  read<F extends Fields>(member: Struct<F>): ValueOf<F> {
    return member.decode(this.pages.run.bytes);
  }

  /** What the last exit has told, to be told again. */
  told(): ToldExit {
    const { run, pio } = this.pages;
    return { reason: this.exitReason, details: run.bytes.slice(UNION.start, UNION.end), pio: pio.bytes.slice() };
  }

  tell({ reason, details, pio }: ToldExit): void {
    const { pages } = this;
    fields.exit_reason.set(pages.run.view, 0, reason);
    pages.run.bytes.set(details, UNION.start);
    pages.pio.bytes.set(pio);
  }

  /** What userspace answered to a KVM_EXIT_MMIO load. */
  mmioData(length: number): Uint8Array {
    return kvm_run__mmio.fields.data.get(this.pages.run.view, 0).subarray(0, length);
  }

  /** What userspace answered to KVM_EXIT_X86_RDMSR or _WRMSR. */
  msrAnswer(): { readonly error: boolean; readonly data: bigint } {
    const { error, data } = this.read(kvm_run__msr);
    return { error: error !== 0, data };
  }

  /** The data page of KVM_EXIT_IO. */
  get pio(): Uint8Array {
    return this.pages.pio.bytes;
  }

  syncRegs(): StructValue<typeof kvm_sync_regs> {
    return kvm_sync_regs.decode(this.pages.run.bytes, KVM_RUN_SYNC_REGS_OFFSET);
  }

  writeSyncRegs(values: Partial<StructValue<typeof kvm_sync_regs>>): void {
    kvm_sync_regs.write(this.pages.run.bytes, values, KVM_RUN_SYNC_REGS_OFFSET);
  }

  /** `kvm_handle_signal_exit`. */
  signalExit(): void {
    this.exitReason = KVM_EXIT.INTR;
  }
}
