import { KVM_EXIT } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_run, kvm_run__internal, kvm_run__io, kvm_run__mmio } from '../../../server/kernel/uapi/kvm-run.js';
import { kvm_userspace_memory_region } from '../../../server/kernel/uapi/kvm-structs.js';
import { MAP, PROT } from '../../../server/kernel/uapi/mman.js';
import type { StructValue } from '../../../server/kernel/uapi/struct.js';
import { kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events } from '../../../server/kernel/uapi/x86-structs.js';
import type { Outcome, SystemCalls } from '../../conformance/system-calls.js';
import { caseData, type GuestCase } from './case.js';
import { isLong, LAYOUT, type Mode, ramImage, SELECTOR } from './layout.js';

type Sregs = StructValue<typeof kvm_sregs>;
type Segment = StructValue<typeof kvm_segment>;

/** How a machine ended, in words that can be compared. */
export interface GuestOutcome {
  readonly exit: string;
  readonly registers: StructValue<typeof kvm_regs>;
  readonly sregs: Sregs;
  readonly ram: Uint8Array;
}

const SIGUSR1 = 10;
const RUN_LIMIT_MS = 100;
const KICK_PERIOD_MS = 10;
/** An instruction that asks for more has been caught in a loop. */
const FRAGMENTS_MAX = 1000;
/** What devices answer to loads and IN. */
const ANSWER = Uint8Array.of(0x5a, 0xa5, 0x0f, 0xf0, 0x81, 0x7e, 0x3c, 0xc3);
const OPEN_RW = 2;
/** Events that KVM_SET_VCPU_EVENTS sets: pending NMI, SIPI vector, interrupt shadow. */
const ALL_EVENTS = 7;
const GENERAL = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;

const segment = (selector: number, base: bigint, changes: Partial<Segment> = {}): Segment => ({
  ...kvm_segment.decode(new Uint8Array(kvm_segment.size)),
  ...{ selector, base, limit: 0xffffffff, type: 3, present: 1, s: 1, g: 1, db: 1, ...changes },
});

/** Special registers of each mode. */
const sregsOf = (mode: Mode, reset: Sregs): Sregs => {
  const tables = { gdt: { base: BigInt(LAYOUT.gdt), limit: 0x37 }, idt: { base: BigInt(LAYOUT.idt), limit: 0xfff } };
  if (mode === 'real') {
    const flat = (now: Segment): Segment => ({ ...now, base: 0n, selector: 0 });
    const { cs, ds, es, fs, gs, ss } = reset;
    const all = { cs: flat(cs), ds: flat(ds), es: flat(es), fs: flat(fs), gs: flat(gs), ss: flat(ss) };
    return { ...reset, ...all, cr0: 0x10n, idt: { base: 0n, limit: 0x3ff } };
  }
  const data = segment(SELECTOR.data, 0n);
  const bits64 = mode === 'long';
  return {
    ...reset,
    ...tables,
    cs: segment(bits64 ? SELECTOR.code64 : SELECTOR.code, 0n, { type: 11, l: bits64 ? 1 : 0, db: bits64 ? 0 : 1 }),
    ...{ ds: data, es: data, fs: data, gs: data, ss: data },
    cr3: BigInt(LAYOUT.pageTables),
    cr4: isLong(mode) ? 0x20n : 0n,
    cr0: isLong(mode) ? 0x80000011n : 0x11n,
    efer: isLong(mode) ? 0x500n : 0n,
  };
};

const must = ({ ret, errno }: Outcome): bigint => {
  if (errno !== null) throw new Error(errno);
  return ret;
};

/** A VM with one vCPU that runs one case after the other. */
export class GuestMachine {
  /** An access is under way that would not come to its end: the next case would find it. */
  stuck = false;

  private constructor(
    private readonly calls: SystemCalls,
    private readonly vcpu: number,
    private readonly ram: bigint,
    private readonly run: bigint,
    /** Memory for the structures of ioctls. */
    private readonly structs: bigint,
    private readonly reset: Sregs,
  ) {}

  static async create(calls: SystemCalls): Promise<GuestMachine> {
    const map = async (length: number, flags: number, fd = -1): Promise<bigint> =>
      must(await calls.mmap({ length: BigInt(length), prot: PROT.READ | PROT.WRITE, flags, fd, offset: 0n }));
    const system = Number(must(await calls.open('/dev/kvm', OPEN_RW)));
    const vm = Number(must(await calls.ioctl(system, IOCTL.KVM_CREATE_VM, 0n)));
    const ram = await map(LAYOUT.ramBytes, MAP.SHARED | MAP.ANONYMOUS);
    const structs = await map(0x1000, MAP.PRIVATE | MAP.ANONYMOUS);
    const region = { slot: 0, memory_size: BigInt(LAYOUT.ramBytes), userspace_addr: ram };
    await calls.store(structs, kvm_userspace_memory_region.encode(region));
    must(await calls.ioctl(vm, IOCTL.KVM_SET_USER_MEMORY_REGION, structs));
    const vcpu = Number(must(await calls.ioctl(vm, IOCTL.KVM_CREATE_VCPU, 0n)));
    const size = Number(must(await calls.ioctl(system, IOCTL.KVM_GET_VCPU_MMAP_SIZE, 0n)));
    const run = await map(size, MAP.SHARED, vcpu);
    must(await calls.ioctl(vcpu, IOCTL.KVM_GET_SREGS, structs));
    const reset = kvm_sregs.decode((await calls.load(structs, kvm_sregs.size)).data);
    return new GuestMachine(calls, vcpu, ram, run, structs, reset);
  }

  async execute(guest: GuestCase): Promise<GuestOutcome> {
    await this.prepare(guest);
    const outcome = await this.runWithLimit();
    const area = (await this.calls.load(this.run, 0x1000)).data;
    const exit = outcome.errno ?? describeExit(area);
    await this.finishPendingAccess(area);
    const registers = kvm_regs.decode(await this.get(IOCTL.KVM_GET_REGS, kvm_regs.size));
    const sregs = kvm_sregs.decode(await this.get(IOCTL.KVM_GET_SREGS, kvm_sregs.size));
    const { data: ram } = await this.calls.load(this.ram, LAYOUT.ramBytes);
    return { exit, registers, sregs, ram };
  }

  private async prepare(guest: GuestCase): Promise<void> {
    const code = Buffer.concat(guest.instructions);
    await this.calls.store(this.ram, ramImage(guest.mode, code, caseData(guest)));
    await this.set(IOCTL.KVM_SET_VCPU_EVENTS, kvm_vcpu_events.encode({ flags: ALL_EVENTS }));
    await this.set(IOCTL.KVM_SET_SREGS, kvm_sregs.encode(sregsOf(guest.mode, this.reset)));
    const registers: Partial<StructValue<typeof kvm_regs>> = { rip: BigInt(LAYOUT.code), rflags: guest.rflags };
    GENERAL.forEach((name, index) => {
      registers[name] = guest.registers[index] ?? 0n;
    });
    await this.set(IOCTL.KVM_SET_REGS, kvm_regs.encode(registers));
  }

  private async runWithLimit(): Promise<Outcome> {
    let over = false;
    const done = this.calls.ioctl(this.vcpu, IOCTL.KVM_RUN, 0n).then((outcome) => {
      over = true;
      return outcome;
    });
    const isOver = (): boolean => over;
    for (let wait = RUN_LIMIT_MS; ; wait = KICK_PERIOD_MS) {
      const limit = this.calls.timer(wait);
      await Promise.race([done, limit.expired]);
      limit.cancel();
      if (isOver()) break;
      await this.setImmediateExit(1);
      await this.calls.signal(SIGUSR1);
    }
    await this.setImmediateExit(0);
    return done;
  }

  /** Answers an exit for I/O, and lets it be completed: RIP is past the instruction then, on every kernel. */
  private async finishPendingAccess(exit: Uint8Array): Promise<void> {
    await this.setImmediateExit(1);
    this.stuck = true;
    for (let area = exit, left = FRAGMENTS_MAX; this.stuck && left > 0; left--) {
      await this.answer(area);
      this.stuck = (await this.calls.ioctl(this.vcpu, IOCTL.KVM_RUN, 0n)).errno === null;
      area = (await this.calls.load(this.run, 0x1000)).data;
    }
    await this.setImmediateExit(0);
  }

  private async answer(area: Uint8Array): Promise<void> {
    const { exit_reason } = kvm_run.decode(area);
    if (exit_reason === KVM_EXIT.MMIO) await this.calls.store(this.run + BigInt(kvm_run__mmio.fields.data.offset), ANSWER);
    if (exit_reason === KVM_EXIT.IO) {
      const { data_offset, direction } = kvm_run__io.decode(area);
      if (direction === 0) await this.calls.store(this.run + data_offset, ANSWER);
    }
  }

  private async setImmediateExit(value: number): Promise<void> {
    await this.calls.store(this.run + BigInt(kvm_run.fields.immediate_exit.offset), Uint8Array.of(value));
  }

  private async set(request: number, bytes: Uint8Array): Promise<void> {
    await this.calls.store(this.structs, bytes);
    must(await this.calls.ioctl(this.vcpu, request, this.structs));
  }

  private async get(request: number, bytes: number): Promise<Uint8Array> {
    must(await this.calls.ioctl(this.vcpu, request, this.structs));
    return (await this.calls.load(this.structs, bytes)).data;
  }
}

const describeExit = (area: Uint8Array): string => {
  const { exit_reason } = kvm_run.decode(area);
  switch (exit_reason) {
    case KVM_EXIT.HLT:
      return 'HLT';
    case KVM_EXIT.SHUTDOWN:
      return 'SHUTDOWN';
    case KVM_EXIT.IO: {
      const { direction, size, port, count } = kvm_run__io.decode(area);
      return `IO ${direction === 1 ? 'out' : 'in'} port 0x${port.toString(16)}, ${count} of ${size}`;
    }
    case KVM_EXIT.MMIO: {
      const { phys_addr, data, len, is_write } = kvm_run__mmio.decode(area);
      const what = is_write === 1 ? `write ${Buffer.from(data.subarray(0, len)).toString('hex')}` : `read ${len}`;
      return `MMIO 0x${phys_addr.toString(16)} ${what}`;
    }
    case KVM_EXIT.INTERNAL_ERROR:
      return `INTERNAL_ERROR ${kvm_run__internal.decode(area).suberror}`;
    default:
      return `exit ${exit_reason}`;
  }
};
