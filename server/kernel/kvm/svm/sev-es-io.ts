import { type Gpa, gpa, PAGE_SIZE } from '../../../hardware/units.js';
import { KVM_EXIT, KVM_EXIT_IO } from '../../uapi/constants.js';
import { kvm_run__io, kvm_run__mmio } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import type { Completion, Turn } from '../x86/vcpu-arch.js';

/**
 * Port and memory-mapped I/O that an encrypted guest asks for in its GHCB: `kvm_fast_pio`, `kvm_sev_es_string_io`,
 * `kvm_sev_es_mmio_read` and `_write`. Data comes from and goes to places that the guest has named, not registers.
 */

/** Bytes that one KVM_EXIT_MMIO carries at most. */
const MMIO_MAX = 8;

const completeWith = (vcpu: Vcpu, wantsData: boolean, next: () => Turn): Turn => {
  const completion: Completion = {
    kind: 'vendor',
    wantsData,
    // biome-ignore lint/correctness/useYield: a completion may wait, this one never does
    *run() {
      return next();
    },
  };
  vcpu.arch.completion = completion;
  return 'to-user';
};

/** A port access of `count` elements; for OUT, `data` has them all. */
export interface PortAccess {
  readonly port: number;
  readonly size: 1 | 2 | 4;
  readonly count: number;
}

const exitIo = (vcpu: Vcpu, direction: number, { port, size, count }: PortAccess): void =>
  vcpu.arch.run.exit(KVM_EXIT.IO, kvm_run__io, { direction, port, size, count, data_offset: BigInt(PAGE_SIZE) });

/** OUT and OUTS. What a device in the kernel does not take goes to userspace, as many elements as fit one page. */
export const portOut = (vcpu: Vcpu, access: PortAccess, data: Uint8Array): Turn => {
  const { port, size, count } = access;
  const { pio } = vcpu.vm.buses;
  let done = 0;
  while (done < count && pio.write(vcpu, port, data.subarray(done * size, (done + 1) * size)) === 'handled') done++;
  if (done === count) return 'again';
  const batch = Math.min(count - done, PAGE_SIZE / size);
  vcpu.arch.run.pio.set(data.subarray(done * size, (done + batch) * size));
  exitIo(vcpu, KVM_EXIT_IO.OUT, { port, size, count: batch });
  const rest = count - done - batch;
  return completeWith(vcpu, false, () =>
    rest === 0 ? 'again' : portOut(vcpu, { port, size, count: rest }, data.subarray((done + batch) * size)),
  );
};

/** IN and INS; `deliver` gets the elements in order, and whatever it returns is how the access ended. */
export const portIn = (vcpu: Vcpu, access: PortAccess, deliver: (data: Uint8Array) => Turn): Turn => {
  const { port, size, count } = access;
  const data = new Uint8Array(count * size);
  return portInFrom(vcpu, { port, size }, data, 0, deliver);
};

const portInFrom = (
  vcpu: Vcpu,
  { port, size }: Pick<PortAccess, 'port' | 'size'>,
  data: Uint8Array,
  start: number,
  deliver: (data: Uint8Array) => Turn,
): Turn => {
  let done = start;
  while (done < data.length) {
    const value = vcpu.vm.buses.pio.read(vcpu, port, size);
    if (value === null) break;
    data.set(value, done);
    done += size;
  }
  if (done === data.length) return deliver(data);
  const batch = Math.min(data.length - done, PAGE_SIZE);
  exitIo(vcpu, KVM_EXIT_IO.IN, { port, size, count: batch / size });
  return completeWith(vcpu, true, () => {
    data.set(vcpu.arch.run.pio.subarray(0, batch), done);
    return portInFrom(vcpu, { port, size }, data, done + batch, deliver);
  });
};

/** A store to `address`; parts of at most 8 bytes go to a device in the kernel or to userspace. */
export const mmioWrite = (vcpu: Vcpu, address: Gpa, data: Uint8Array): Turn => {
  for (let done = 0; done < data.length; ) {
    const part = data.subarray(done, done + MMIO_MAX);
    const at = gpa(address + done);
    done += part.length;
    if (vcpu.vm.buses.mmio.write(vcpu, at, part) === 'handled') continue;
    exitMmio(vcpu, at, part.length, part);
    const rest = data.subarray(done);
    return completeWith(vcpu, false, () => (rest.length === 0 ? 'again' : mmioWrite(vcpu, gpa(at + part.length), rest)));
  }
  return 'again';
};

/** A load from `address`. */
export const mmioRead = (vcpu: Vcpu, address: Gpa, length: number, deliver: (data: Uint8Array) => Turn): Turn =>
  mmioReadFrom(vcpu, address, new Uint8Array(length), 0, deliver);

const mmioReadFrom = (vcpu: Vcpu, address: Gpa, data: Uint8Array, start: number, deliver: (data: Uint8Array) => Turn): Turn => {
  for (let done = start; done < data.length; ) {
    const size = Math.min(MMIO_MAX, data.length - done);
    const value = vcpu.vm.buses.mmio.read(vcpu, address + done, size);
    if (value === null) {
      const at = done;
      exitMmio(vcpu, gpa(address + at), size, null);
      return completeWith(vcpu, true, () => {
        data.set(vcpu.arch.run.mmioData(size), at);
        return mmioReadFrom(vcpu, address, data, at + size, deliver);
      });
    }
    data.set(value, done);
    done += size;
  }
  return deliver(data);
};

const exitMmio = (vcpu: Vcpu, address: Gpa, length: number, data: Uint8Array | null): void =>
  vcpu.arch.run.exit(KVM_EXIT.MMIO, kvm_run__mmio, {
    phys_addr: BigInt(address),
    len: length,
    is_write: data === null ? 0 : 1,
    ...(data === null ? {} : { data }),
  });
