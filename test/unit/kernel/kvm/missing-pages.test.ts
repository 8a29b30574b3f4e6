import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createHost } from '../../../../server/kernel/kvm/host.js';
import type { AddressSpace } from '../../../../server/kernel/mm/address-space.js';
import { MissingPages } from '../../../../server/kernel/mm/missing-pages.js';
import { KVM_EXIT } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_run__memory_fault } from '../../../../server/kernel/uapi/kvm-run.js';
import { kvm_userspace_memory_region } from '../../../../server/kernel/uapi/kvm-structs.js';
import { MAP } from '../../../../server/kernel/uapi/mman.js';
import { kvm_regs, kvm_sregs } from '../../../../server/kernel/uapi/x86-structs.js';
import { InProcessCalls } from '../../../conformance/backend-in-process.js';
import { RECORDED_HOST } from '../../../conformance/recorded-host.js';
import type { Outcome } from '../../../conformance/system-calls.js';
import { VirtualClock, VirtualTime } from '../../../conformance/virtual-time.js';
import { describeCase, generateCase } from '../../../differential/guest-code/case.js';
import { LAYOUT } from '../../../differential/guest-code/layout.js';
import { GuestMachine, type GuestOutcome } from '../../../differential/guest-code/machine.js';
import { Random } from '../../../differential/random.js';
import { trackHost } from '../../../helpers/leftovers.js';
import { createTestHost, type TestHost } from './test-host.js';

const PAGE = 4096;
const CASES = 1500;

/** The system calls of a VMM. With each KVM_RUN some pages of its guest go missing; each comes back when it is wanted. */
class ForgetfulCalls extends InProcessCalls {
  /** Decides for each page of the guest whether it goes. */
  goes: () => boolean = () => false;
  wanted = 0;
  private ram = 0;

  constructor(
    private readonly guestMemory: AddressSpace,
    ...rest: ConstructorParameters<typeof InProcessCalls>
  ) {
    super(...rest);
    const { mmap } = this;
    this.mmap = async (call) => {
      if (call.length !== BigInt(LAYOUT.ramBytes)) return mmap(call);
      const mapped = await mmap({ ...call, flags: MAP.PRIVATE | MAP.ANONYMOUS });
      this.ram = Number(mapped.ret);
      return mapped;
    };
  }

  override ioctl(fd: number, request: number, arg: bigint): Promise<Outcome> {
    if (request === IOCTL.KVM_RUN) this.forget();
    return super.ioctl(fd, request, arg);
  }

  private forget(): void {
    const mm = this.guestMemory;
    const contents = new Map<number, Uint8Array>();
    const missing = new MissingPages({
      wanted: (addresses) => {
        this.wanted += addresses.length;
        queueMicrotask(() => {
          for (const address of addresses) mm.fill(missing, address, contents.get(address) ?? new Uint8Array(PAGE));
        });
      },
      whole: () => {},
    });
    for (let address = this.ram; address < this.ram + LAYOUT.ramBytes; address += PAGE) {
      const bytes = mm.hasMissing(address, address + PAGE) || !this.goes() ? null : mm.read(address, PAGE);
      if (!(bytes instanceof Uint8Array)) continue;
      contents.set(address, bytes);
      mm.expect(missing, address, address + PAGE);
    }
  }
}

/** Memory by its hash: thousands of bytes are slow to compare one by one. */
const comparable = ({ ram, ...rest }: GuestOutcome) => ({ ...rest, ram: createHash('sha256').update(ram).digest('hex') });

const createMachine = async (): Promise<{ machine: GuestMachine; calls: ForgetfulCalls }> => {
  const clock = new VirtualClock();
  const kernel = trackHost(createHost(RECORDED_HOST, { clock }));
  const process = kernel.spawn(null);
  if (process.mm === null) throw new Error('a process without memory');
  const calls = new ForgetfulCalls(process.mm, kernel, new VirtualTime(kernel, clock), process);
  return { machine: await GuestMachine.create(calls), calls };
};

describe('a guest whose pages are missing when it touches them', () => {
  it('does not notice: whatever the instruction, it is made again, and has had no effect before', async () => {
    const whole = await createMachine();
    const patchy = await createMachine();
    const random = new Random(20);
    patchy.calls.goes = () => random.chance(0.6);
    for (let seed = 0; seed < CASES; seed++) {
      const guest = generateCase(seed);
      const [expected, actual] = [await whole.machine.execute(guest), await patchy.machine.execute(guest)].map(comparable);
      // A loop without end is interrupted anywhere.
      if (expected?.exit === 'EINTR') continue;
      expect(actual, `seed ${seed}: ${describeCase(guest)}`).toEqual(expected);
    }
    expect(patchy.calls.wanted).toBeGreaterThan(CASES);
  });
});

const SIGUSR1 = 10;
/** Of the guest: code, and a page that its first instruction loads from. */
const CODE = 0x1000;
const DATA = 0x2000;
const STACK = 0x3000;
/** In the page of the code. */
const HANDLER = 0x1100;
const IVT = 0;
const RAM_BYTES = 0x4000;

/** A guest in real mode, with its code or its data missing: mov ax,[0x2000]; hlt. */
const createGuest = () => {
  const host = createTestHost();
  const { mm } = host.process;
  if (mm === null) throw new Error('a process without memory');
  const { vmFd, vcpuFd, vcpu } = host.withVcpu();
  const protection = { read: true, write: true, execute: false };
  const ram = host.must(mm.mmap({ length: RAM_BYTES, protection, shared: false, object: null, offset: 0 }));
  mm.write(ram + CODE, Uint8Array.of(0xa1, 0x00, 0x20, 0xf4));
  mm.write(ram + DATA, Uint8Array.of(0x34, 0x12));
  const region = { slot: 0, memory_size: BigInt(RAM_BYTES), userspace_addr: BigInt(ram) };
  host.must(host.ioctl(vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region)));
  const sregs = new Uint8Array(kvm_sregs.size);
  host.must(host.ioctl(vcpuFd, IOCTL.KVM_GET_SREGS, sregs));
  const set = kvm_sregs.decode(sregs);
  host.must(host.ioctl(vcpuFd, IOCTL.KVM_SET_SREGS, kvm_sregs.encode({ ...set, cs: { ...set.cs, base: 0n, selector: 0 } })));
  host.must(host.ioctl(vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: BigInt(CODE), rflags: 2n })));
  const wanted: number[] = [];
  const missing = new MissingPages({
    wanted: (addresses) => wanted.push(...addresses.map((each) => each - ram)),
    whole: () => {},
  });
  const contents = new Map<number, Uint8Array>();
  const lose = (page: number): void => {
    const bytes = mm.read(ram + page, PAGE);
    if (bytes instanceof Uint8Array) contents.set(page, bytes);
    mm.expect(missing, ram + page, ram + page + PAGE);
  };
  const bring = (page: number): void => {
    mm.fill(missing, ram + page, contents.get(page) ?? new Uint8Array(PAGE));
    host.kernel.scheduler.run();
  };
  return { host, vmFd, vcpuFd, vcpu, ram, wanted, missing, lose, bring };
};

describe('KVM_RUN of a vCPU that touches a page which is missing', () => {
  it.each([
    ['code', CODE],
    ['data', DATA],
  ])('waits for %s, and goes on when it has come', (_what, page) => {
    const { host, vcpuFd, vcpu, wanted, lose, bring } = createGuest();
    lose(page);
    const run = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    expect([run.result(), wanted]).toEqual([undefined, [page]]);
    bring(page);
    expect(run.result()).toBe(0);
    expect([vcpu.arch.run.exitReason, vcpu.arch.state.register(0)]).toEqual([KVM_EXIT.HLT, 0x1234n]);
  });

  it('leaves with EINTR for a signal, and the next one goes on with the same instruction', () => {
    const { host, vcpuFd, vcpu, wanted, lose, bring } = createGuest();
    lose(DATA);
    const run = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    host.process.signal(SIGUSR1);
    host.kernel.scheduler.run();
    expect(run.result()).toMatchObject({ errno: 'EINTR' });
    expect([vcpu.arch.run.exitReason, vcpu.arch.state.rip]).toEqual([KVM_EXIT.INTR, BigInt(CODE)]);
    const again = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    bring(DATA);
    expect([again.result(), wanted]).toEqual([0, [DATA]]);
    expect(vcpu.arch.state.register(0)).toBe(0x1234n);
  });

  it('lets other vCPUs run, and other calls be made', () => {
    const { host, vmFd, vcpuFd, lose, bring } = createGuest();
    const other = host.createVcpu(vmFd, 1);
    lose(DATA);
    const run = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    expect(host.try(other.fd, IOCTL.KVM_GET_REGS, new Uint8Array(kvm_regs.size))).toBe(0);
    host.must(host.ioctl(vmFd, IOCTL.KVM_CHECK_EXTENSION, 0));
    expect(run.result()).toBeUndefined();
    bring(DATA);
    expect(run.result()).toBe(0);
  });

  it.each([
    ['an interrupt', 0x20, (host: TestHost, fd: number) => host.ioctl(fd, IOCTL.KVM_INTERRUPT, Uint8Array.of(0x20, 0, 0, 0))],
    ['an NMI', 2, (host: TestHost, fd: number) => host.ioctl(fd, IOCTL.KVM_NMI)],
  ])('delivers %s once, whichever page it needs', (_what, vector, inject) => {
    for (const missing of [[IVT], [STACK], [IVT, STACK, CODE]]) {
      const { host, vcpuFd, vcpu, ram, wanted, lose, bring } = createGuest();
      // The handler: inc cx; hlt.
      host.process.mm?.write(ram + 4 * vector, Uint8Array.of(0x00, 0x11, 0, 0));
      host.process.mm?.write(ram + HANDLER, Uint8Array.of(0x41, 0xf4));
      host.must(host.ioctl(vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: BigInt(CODE), rsp: 0x3100n, rflags: 0x202n })));
      host.must(inject(host, vcpuFd));
      for (const page of missing) lose(page);
      const run = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
      for (let turn = 0; turn < missing.length && run.result() === undefined; turn++) bring(wanted[turn] ?? -1);
      expect([run.result(), vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.HLT]);
      expect([vcpu.arch.state.register(1), vcpu.arch.state.register(4)]).toEqual([1n, 0x3100n - 6n]);
    }
  });

  it('fails with EFAULT and KVM_EXIT_MEMORY_FAULT once nobody has the page any more', () => {
    const { host, vcpuFd, vcpu, missing, lose } = createGuest();
    lose(DATA);
    const run = host.startIoctl(vcpuFd, IOCTL.KVM_RUN);
    host.process.mm?.lose(missing);
    host.kernel.scheduler.run();
    expect(run.result()).toMatchObject({ errno: 'EFAULT', reason: 'PAGE_LOST' });
    expect(vcpu.arch.run.exitReason).toBe(KVM_EXIT.MEMORY_FAULT);
    expect(vcpu.arch.run.read(kvm_run__memory_fault)).toMatchObject({ gpa: BigInt(DATA), size: BigInt(PAGE) });
  });
});

describe('an ioctl whose argument lies in a page that is missing', () => {
  it('waits for it, and answers as if it had been there', () => {
    const { host, vmFd, vcpuFd, ram, lose, bring } = createGuest();
    host.process.mm?.write(ram + DATA, kvm_userspace_memory_region.encode({ slot: 1, guest_phys_addr: 1n }));
    lose(DATA);
    const call = host.startIoctl(vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, ram + DATA);
    expect(call.result()).toBeUndefined();
    bring(DATA);
    expect(call.result()).toMatchObject({ errno: 'EINVAL' });
    expect(host.try(vcpuFd, IOCTL.KVM_GET_REGS, ram + DATA)).toBe(0);
  });

  it('writes its result without waiting, over what comes later', () => {
    const { host, vcpuFd, ram, lose, bring } = createGuest();
    lose(DATA);
    expect(host.try(vcpuFd, IOCTL.KVM_GET_REGS, ram + DATA)).toBe(0);
    bring(DATA);
    const regs = host.process.mm?.read(ram + DATA, kvm_regs.size);
    expect(regs instanceof Uint8Array && kvm_regs.decode(regs).rip).toBe(BigInt(CODE));
  });

  it('waits also where the kernel itself walks through the page for it', () => {
    const { host, vcpuFd, lose, bring } = createGuest();
    lose(DATA);
    const sregs = new Uint8Array(kvm_sregs.size);
    host.must(host.ioctl(vcpuFd, IOCTL.KVM_GET_SREGS, sregs));
    const paging = { ...kvm_sregs.decode(sregs), cr3: BigInt(DATA), cr0: 0x8000_0011n };
    host.must(host.ioctl(vcpuFd, IOCTL.KVM_SET_SREGS, kvm_sregs.encode(paging)));
    const call = host.startIoctl(vcpuFd, IOCTL.KVM_TRANSLATE, new Uint8Array(24));
    expect(call.result()).toBeUndefined();
    bring(DATA);
    expect(call.result()).toBe(0);
  });
});
