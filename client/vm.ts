import { File } from './file.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { Sev } from './sev.js';
import { vmCalls } from './vm-calls.js';

/**
 * A VM. Every ioctl of one is a method under its name in camelCase; `vm.try` has the same methods, which give the errno as
 * a value; `vm.sev` has the SEV commands.
 *
 * @example
 * ```ts
 * await using vm = await kvm.createVm();
 * await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: 0x10000, userspace_addr: ram });
 * const { errno } = await vm.try.setUserMemoryRegion({ slot: 1, guest_phys_addr: 0, memory_size: 0x1000, userspace_addr: ram });
 * console.log(errno); // EEXIST
 * ```
 */
export class Vm extends withForms(class extends Handle {}, vmCalls) {
  /** The SEV commands. */
  get sev(): Sev {
    return new Sev(this.caller, this.descriptor);
  }

  /** The same descriptor as a file, for fstat, fcntl and the like. */
  get file(): File {
    return new File(this.caller, this.descriptor);
  }
}
