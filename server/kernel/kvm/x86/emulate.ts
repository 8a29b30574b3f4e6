import { Gpr } from '../../../hardware/cpu/registers.js';
import type { CpuExit, EmulationBus, EmulationResult, MemoryAccess, Segment, SegmentName } from '../../../hardware/cpu/types.js';
import { type Gpa, gpaToGfn } from '../../../hardware/units.js';
import { KVM_EXIT, KVM_EXIT_IO } from '../../uapi/constants.js';
import { kvm_run__mmio } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { completion } from './completion.js';
import { doSinglestep } from './debug.js';
import { takeBackEvent } from './inject.js';
import { kernelMmioRead, kernelMmioWrite } from './mmio.js';
import { exitMemoryFault, KvmPageFault } from './page-fault.js';
import { exitPio, kernelPioRead, kernelPioWrite, takePioData } from './pio.js';
import type { Turn } from './vcpu-arch.js';

interface Load {
  readonly address: Gpa;
  readonly data: Uint8Array;
}

interface Store {
  readonly address: Gpa;
  readonly bytes: Uint8Array;
}

interface Frozen {
  readonly revision: number;
  readonly rip: bigint;
  readonly rflags: bigint;
  readonly segments: readonly Segment[];
}

interface PortAccess {
  readonly port: number;
  readonly size: 1 | 2 | 4;
  readonly count: number;
}

/** A repeated string instruction goes back to the guest where these bits of RCX are clear. */
const COUNT_IN_A_TURN = 0x3ff;

/** No revision of the registers. */
const NEVER = -1;

const DATA_SEGMENTS = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'] as const satisfies readonly SegmentName[];

/**
 * One instruction that KVM emulates because it touches what is no RAM, or moves a string through a port
 * (`x86_emulate_instruction` with `emulator_read_write` and `emulator_pio_in_out`).
 *
 * A load that userspace has to answer stops the emulation; the next KVM_RUN starts the instruction again, and each load
 * gets the data that it got before, whatever is at its address by then. Stores are made once the instruction is
 * retired: what no device of the kernel takes goes to userspace, a fragment of at most 8 bytes an exit.
 */
export class Emulation implements EmulationBus {
  private readonly loads: Load[] = [];
  private replayed = 0;
  private stores: Store[] = [];
  private missing: { readonly address: Gpa; readonly size: number } | null = null;
  /** What userspace has answered to an INS. */
  private portAnswer: Uint8Array | null = null;
  /** `io_read`: what INS has read ahead, how much of it earlier iterations have taken, and how much this one has as well. */
  private portData: Uint8Array | null = null;
  private portTaken = 0;
  private portNext = 0;
  private portIn: PortAccess | null = null;
  private portOut: (PortAccess & { readonly bytes: Uint8Array }) | null = null;
  /** The instruction's own view of segments, RIP and RFLAGS, with the revision of the registers that it belongs to. */
  private frozen: Frozen | null = null;
  /** RFLAGS before the instruction: until it is given back to the guest, these are what anybody else sees. */
  private readonly rflags: bigint;

  constructor(
    private readonly vcpu: Vcpu,
    private readonly failure: (bytes: Uint8Array | null) => Turn,
  ) {
    const { arch } = vcpu;
    this.rflags = arch.state.rflags;
    arch.stat.insn_emulation++;
  }

  /** True for a page of which this instruction has loaded as from a device: RAM that has come there meanwhile is not seen. */
  owns(address: Gpa, access: MemoryAccess): boolean {
    return access === 'read' && this.loads.some((load) => gpaToGfn(load.address) === gpaToGfn(address));
  }

  // -- EmulationBus -------------------------------------------------------------------------------------------------

  readMmio(address: Gpa, size: number): Uint8Array | null {
    const again = this.loads[this.replayed];
    if (again !== undefined) {
      this.replayed++;
      return again.data;
    }
    const data = kernelMmioRead(this.vcpu, address, size);
    if (data === null) {
      this.missing = { address, size };
      return null;
    }
    this.answer(address, data);
    return data;
  }

  writeMmio(address: Gpa, bytes: Uint8Array): void {
    this.stores.push({ address, bytes });
  }

  readPort(port: number, size: 1 | 2 | 4, count: number, all: boolean): Uint8Array | null {
    if (this.portData === null) {
      const data = this.portAnswer ?? kernelPioRead(this.vcpu, port, size, count);
      if (data === null) {
        this.portIn = { port, size, count };
        return null;
      }
      // RCX may be another than when userspace was asked, and it is by RCX that elements are counted.
      this.portData = new Uint8Array(size * count);
      this.portData.set(data.subarray(0, size * count));
    }
    this.portNext = all ? this.portData.length : this.portTaken + size;
    return this.portData.subarray(this.portTaken, this.portNext);
  }

  writePort(port: number, size: 1 | 2 | 4, bytes: Uint8Array): void {
    this.portOut = { port, size, count: 1, bytes };
  }

  private answer(address: Gpa, data: Uint8Array): void {
    this.loads.push({ address, data });
    this.replayed = this.loads.length;
  }

  // -- steps --------------------------------------------------------------------------------------------------------

  /** Makes the instruction; a repeated one from where it stands, iteration after iteration while nobody else is needed. */
  attempt(): Turn {
    const { arch } = this.vcpu;
    for (;;) {
      this.replayed = 0;
      this.stores = [];
      this.missing = null;
      this.portIn = null;
      this.portOut = null;
      arch.emulation = this;
      arch.awaitedPage = null;
      const result = this.thaw(() => arch.cpu.emulate(this));
      takeBackEvent(this.vcpu);
      if (result.kind !== 'retired') return this.stopped(result);
      arch.emulation = null;
      const turn = this.putOut();
      if (turn !== 'again') return turn;
      if (!this.goesOn(result.repeats)) return doSinglestep(this.vcpu, result.traced);
      this.loads.length = 0;
    }
  }

  /**
   * EMULATION_RESTART: another iteration follows before the guest is entered again, while what was read ahead lasts, or up to
   * 1024.
   */
  private goesOn(repeats: boolean): boolean {
    const { portData, vcpu } = this;
    this.portTaken = this.portNext;
    if (!repeats) return false;
    return portData === null ? (vcpu.arch.state.gpr[2 * Gpr.RCX] & COUNT_IN_A_TURN) !== 0 : this.portTaken < portData.length;
  }

  /** Not retired: RFLAGS are what they were before the first iteration, whatever those since have made of them. */
  private stopped(result: Exclude<EmulationResult, { readonly kind: 'retired' }>): Turn {
    const { arch } = this.vcpu;
    const { rflags } = arch.state;
    if (rflags !== this.rflags) arch.state.rflags = this.rflags;
    switch (result.kind) {
      case 'pending':
        return this.pending(rflags);
      case 'exception':
        arch.emulation = null;
        return 'again';
      case 'exit':
        return this.cannotGoOn(result.exit, rflags);
    }
  }

  /**
   * The instruction has run into something that no bus can answer. A page that is still to come ends it where no device has been
   * asked yet, for the guest makes it again then; a device must not be asked twice, so otherwise it goes on from its start with
   * the answers that it has.
   */
  private cannotGoOn(exit: CpuExit, rflags: bigint): Turn {
    const { arch } = this.vcpu;
    if (arch.awaitedPage !== null && (this.loads.length > 0 || this.portAnswer !== null || this.portData !== null)) {
      this.freeze(rflags);
      arch.completion = completion('mmio', true, () => this.attempt());
      return 'again';
    }
    arch.emulation = null;
    if (arch.awaitedPage !== null) return 'again';
    if (exit.kind === 'unsupported') return this.failure(exit.bytes);
    if (exit.kind !== 'nested-fault' || !(exit.fault instanceof KvmPageFault)) return 'again';
    const { outcome } = exit.fault;
    return outcome.kind === 'failed' ? exitMemoryFault(this.vcpu, outcome) : 'again';
  }

  /** The instruction waits for data of userspace. */
  private pending(rflags: bigint): Turn {
    const { vcpu, missing, portIn } = this;
    this.freeze(rflags);
    if (portIn !== null) {
      return exitPio(vcpu, KVM_EXIT_IO.IN, portIn, null, () => {
        this.portAnswer = takePioData(vcpu, portIn.size * portIn.count);
        return this.attempt();
      });
    }
    if (missing === null) throw new Error('an emulation waits for nothing');
    return this.exitMmio(missing.address, missing.size, null, () => {
      this.answer(missing.address, vcpu.arch.run.mmioData(missing.size));
      return this.attempt();
    });
  }

  /** What the instruction, or this iteration of it, has stored goes out. */
  private putOut(): Turn {
    const { vcpu, portOut } = this;
    if (portOut !== null && !kernelPioWrite(vcpu, portOut.port, portOut.size, portOut.bytes))
      return exitPio(vcpu, KVM_EXIT_IO.OUT, portOut, portOut.bytes, null);
    return this.exitStores(this.stores.filter(({ address, bytes }) => !kernelMmioWrite(vcpu, address, bytes)));
  }

  private exitStores([first, ...rest]: readonly Store[]): Turn {
    if (first === undefined) return 'again';
    return this.exitMmio(first.address, first.bytes.length, first.bytes, () => this.exitStores(rest));
  }

  /** KVM_EXIT_MMIO, and what the next KVM_RUN does first. */
  private exitMmio(address: Gpa, length: number, bytes: Uint8Array | null, then: () => Turn): Turn {
    const { arch } = this.vcpu;
    arch.stat.mmio_exits++;
    const values = { phys_addr: BigInt(address), len: length, is_write: bytes === null ? 0 : 1 };
    arch.run.exit(KVM_EXIT.MMIO, kvm_run__mmio, bytes === null ? values : { ...values, data: bytes });
    arch.completion = completion('mmio', bytes === null, then);
    return 'to-user';
  }

  // -- registers that userspace changes in between -------------------------------------------------------------------

  private freeze(rflags: bigint): void {
    const { state } = this.vcpu.arch;
    const segments = DATA_SEGMENTS.map((name) => state.segment(name));
    this.frozen = { revision: rflags === this.rflags ? state.revision : NEVER, rip: state.rip, rflags, segments };
  }

  /**
   * The instruction was decoded before its exit: it goes on with the segments, the RIP and the RFLAGS of that time, also if
   * userspace has set others since. The segments of userspace count afterwards.
   */
  private thaw<T>(run: () => T): T {
    const { frozen } = this;
    const { state } = this.vcpu.arch;
    this.frozen = null;
    if (frozen === null || frozen.revision === state.revision) return run();
    const set = DATA_SEGMENTS.map((name) => state.segment(name));
    const load = (segments: readonly Segment[]): void => {
      DATA_SEGMENTS.forEach((name, index) => {
        const segment = segments[index];
        if (segment !== undefined) state.setSegment(name, segment);
      });
    };
    load(frozen.segments);
    state.rip = frozen.rip;
    state.rflags = frozen.rflags;
    const result = run();
    load(set);
    return result;
  }
}
