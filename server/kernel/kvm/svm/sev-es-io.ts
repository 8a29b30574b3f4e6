import { type Gpa, gpa, PAGE_SIZE } from '../../../hardware/units.js';
import { KVM_EXIT, KVM_EXIT_IO } from '../../uapi/constants.js';
import { kvm_run__mmio } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { completion } from '../x86/completion.js';
import { kernelMmioRead, kernelMmioWrite } from '../x86/mmio.js';
import { exitPio, kernelPioRead, kernelPioWrite, takePioData } from '../x86/pio.js';
import type { Turn } from '../x86/vcpu-arch.js';

/**
 * Port and memory-mapped I/O that an encrypted guest asks for in its GHCB: `kvm_fast_pio`, `kvm_sev_es_string_io`,
 * `kvm_sev_es_mmio_read` and `_write`. Data comes from and goes to places that the guest has named, not registers.
 */

/** Bytes that one KVM_EXIT_MMIO carries at most. */
const MMIO_MAX = 8;

/** A port access of `count` elements. */
export interface PortAccess {
  readonly port: number;
  readonly size: 1 | 2 | 4;
  readonly count: number;
}

/** What becomes of loaded data. */
type Deliver = (data: Uint8Array) => Turn;

/** OUT and OUTS. What a device in the kernel does not take goes to userspace, as many elements at once as fit one page. */
export const portOut = (vcpu: Vcpu, { port, size, count }: PortAccess, data: Uint8Array): Turn => {
  let done = 0;
  while (done < count && kernelPioWrite(vcpu, port, size, data.subarray(done * size))) done++;
  if (done === count) return 'again';
  const batch = Math.min(count - done, PAGE_SIZE / size);
  const rest = { port, size, count: count - done - batch };
  const bytes = data.subarray(done * size, (done + batch) * size);
  return exitPio(vcpu, KVM_EXIT_IO.OUT, { port, size, count: batch }, bytes, () =>
    rest.count === 0 ? 'again' : portOut(vcpu, rest, data.subarray((done + batch) * size)),
  );
};

/** IN and INS, at most one page of elements at once. */
export const portIn = (vcpu: Vcpu, access: PortAccess, deliver: Deliver): Turn =>
  portInFrom(vcpu, access, new Uint8Array(access.count * access.size), 0, deliver);

const portInFrom = (vcpu: Vcpu, access: PortAccess, data: Uint8Array, start: number, deliver: Deliver): Turn => {
  const { port, size } = access;
  for (let done = start; done < data.length; ) {
    const at = done;
    const batch = Math.min(data.length - at, PAGE_SIZE);
    const known = kernelPioRead(vcpu, port, size, batch / size);
    if (known === null)
      return exitPio(vcpu, KVM_EXIT_IO.IN, { port, size, count: batch / size }, null, () => {
        data.set(takePioData(vcpu, batch), at);
        return portInFrom(vcpu, access, data, at + batch, deliver);
      });
    data.set(known, at);
    done += batch;
  }
  return deliver(data);
};

/** A store to `address`; parts of at most 8 bytes go to a device in the kernel or to userspace. */
export const mmioWrite = (vcpu: Vcpu, address: Gpa, data: Uint8Array): Turn => {
  for (let done = 0; done < data.length; ) {
    const part = data.subarray(done, done + MMIO_MAX);
    const at = gpa(address + done);
    done += part.length;
    if (kernelMmioWrite(vcpu, at, part)) continue;
    const rest = data.subarray(done);
    return exitMmio(vcpu, at, part.length, part, () =>
      rest.length === 0 ? 'again' : mmioWrite(vcpu, gpa(at + part.length), rest),
    );
  }
  return 'again';
};

/** A load from `address`. */
export const mmioRead = (vcpu: Vcpu, address: Gpa, length: number, deliver: Deliver): Turn =>
  mmioReadFrom(vcpu, address, new Uint8Array(length), 0, deliver);

const mmioReadFrom = (vcpu: Vcpu, address: Gpa, data: Uint8Array, start: number, deliver: Deliver): Turn => {
  for (let done = start; done < data.length; ) {
    const at = done;
    const size = Math.min(MMIO_MAX, data.length - at);
    const known = kernelMmioRead(vcpu, gpa(address + at), size);
    if (known === null)
      return exitMmio(vcpu, gpa(address + at), size, null, () => {
        data.set(vcpu.arch.run.mmioData(size), at);
        return mmioReadFrom(vcpu, address, data, at + size, deliver);
      });
    data.set(known, at);
    done += size;
  }
  return deliver(data);
};

/** KVM_EXIT_MMIO; `data` is null for a load. `then`: what the next KVM_RUN does first. */
const exitMmio = (vcpu: Vcpu, address: Gpa, length: number, data: Uint8Array | null, then: () => Turn): Turn => {
  const { arch } = vcpu;
  arch.stat.mmio_exits++;
  const where = { phys_addr: BigInt(address), len: length };
  arch.run.exit(KVM_EXIT.MMIO, kvm_run__mmio, data === null ? { ...where, is_write: 0 } : { ...where, is_write: 1, data });
  arch.completion = completion('mmio', data === null, then);
  return 'to-user';
};
