import { Gpr } from '../../../hardware/cpu/registers.js';
import type { CpuExit } from '../../../hardware/cpu/types.js';
import { PAGE_SIZE } from '../../../hardware/units.js';
import { KVM_EXIT, KVM_EXIT_IO, KVM_PAGE_OFFSET, KVM_X86_QUIRK } from '../../uapi/constants.js';
import { kvm_run__io } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { completion } from './completion.js';
import { skipEmulatedInstruction } from './debug.js';
import type { Turn } from './vcpu-arch.js';

type PortExit = CpuExit & { readonly kind: 'io' };

interface PortAccess {
  readonly port: number;
  readonly size: 1 | 2 | 4;
  readonly count: number;
}

/**
 * `emulator_pio_in_out` towards the kernel's devices: all `count` elements, or null if nobody takes the first. One that
 * goes away in between reads as zero from there on.
 */
export const kernelPioRead = (vcpu: Vcpu, port: number, size: number, count: number): Uint8Array | null => {
  const { pio } = vcpu.vm.buses;
  const data = new Uint8Array(size * count);
  for (let element = 0; element < count; element++) {
    const value = pio.read(vcpu, port, size);
    if (value === null) return element === 0 ? null : data;
    data.set(value.subarray(0, size), element * size);
  }
  return data;
};

/** One element towards the kernel's devices; false: userspace gets it. */
export const kernelPioWrite = (vcpu: Vcpu, port: number, size: number, bytes: Uint8Array): boolean =>
  vcpu.vm.buses.pio.write(vcpu, port, bytes.subarray(0, size)) === 'handled';

/** KVM_EXIT_IO. `then`: what the next KVM_RUN does first. */
export const exitPio = (
  vcpu: Vcpu,
  direction: (typeof KVM_EXIT_IO)[keyof typeof KVM_EXIT_IO],
  { port, size, count }: PortAccess,
  bytes: Uint8Array | null,
  then: (() => Turn) | null,
): Turn => {
  const { arch } = vcpu;
  arch.stat.io_exits++;
  const data_offset = BigInt(KVM_PAGE_OFFSET.PIO * PAGE_SIZE);
  arch.run.exit(KVM_EXIT.IO, kvm_run__io, { direction, size, port, count, data_offset });
  // `emulator_pio_in_out` clears what a device has to fill in: an IN that nobody answers reads zeros.
  if (bytes === null) arch.run.pio.fill(0, 0, size * count);
  else arch.run.pio.set(bytes);
  const isIn = direction === KVM_EXIT_IO.IN;
  if (then !== null) arch.completion = completion(isIn ? 'pio-in' : 'pio-out', isIn, then);
  return 'to-user';
};

/** What userspace has put into the PIO page. */
export const takePioData = (vcpu: Vcpu, length: number): Uint8Array => vcpu.arch.run.pio.slice(0, length);

/** Steps over the instruction, unless userspace has put the vCPU somewhere else meanwhile. */
const skipAt = (vcpu: Vcpu, rip: bigint): Turn => (vcpu.arch.state.rip === rip ? skipEmulatedInstruction(vcpu) : 'again');

/** `kvm_fast_pio`: IN and OUT with a register. RIP stays on the instruction until userspace has had its turn. */
export const fastPio = (vcpu: Vcpu, exit: PortExit): Turn =>
  exit.direction === 'in' ? fastPioIn(vcpu, exit) : fastPioOut(vcpu, exit);

/** Port of the POST code on some boards, for which RIP is advanced at once: an ancient firmware relies on it. */
const POST_PORT = 0x7e;

const fastPioOut = (vcpu: Vcpu, { port, size, value }: PortExit): Turn => {
  const bytes = Uint8Array.of(value, value >>> 8, value >>> 16, value >>> 24).subarray(0, size);
  if (kernelPioWrite(vcpu, port, size, bytes)) return skipEmulatedInstruction(vcpu);
  const { rip } = vcpu.arch.state;
  const access = { port, size, count: 1 };
  if (port !== POST_PORT || !vcpu.vm.arch.quirkEnabled(KVM_X86_QUIRK.OUT_7E_INC_RIP))
    return exitPio(vcpu, KVM_EXIT_IO.OUT, access, bytes, () => skipAt(vcpu, rip));
  skipEmulatedInstruction(vcpu);
  return exitPio(vcpu, KVM_EXIT_IO.OUT, access, bytes, () => 'again');
};

const fastPioIn = (vcpu: Vcpu, { port, size }: PortExit): Turn => {
  const data = kernelPioRead(vcpu, port, size, 1);
  if (data !== null) {
    loadRax(vcpu, data);
    return skipEmulatedInstruction(vcpu);
  }
  const { rip } = vcpu.arch.state;
  return exitPio(vcpu, KVM_EXIT_IO.IN, { port, size, count: 1 }, null, () => {
    if (vcpu.arch.state.rip !== rip) return 'again';
    loadRax(vcpu, takePioData(vcpu, size));
    return skipEmulatedInstruction(vcpu);
  });
};

/** IN of less than four bytes leaves the rest of RAX as it was; four bytes clear the upper half. */
const loadRax = (vcpu: Vcpu, data: Uint8Array): void => {
  const { state } = vcpu.arch;
  let value = data.length < 4 ? state.register(Gpr.RAX) : 0n;
  data.forEach((byte, index) => {
    const shift = BigInt(8 * index);
    value = (value & ~(0xffn << shift)) | (BigInt(byte) << shift);
  });
  state.setRegister(Gpr.RAX, value);
};
