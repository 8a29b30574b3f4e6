import { File } from './file.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { vcpuCalls } from './vcpu-calls.js';

/**
 * A vCPU. Every ioctl of one is a method; `vcpu.try` has the same methods, which give the errno as a value.
 *
 * @example
 * ```ts
 * await using vcpu = await vm.createVcpu(0);
 * const exit = await vcpu.run();
 * if (exit.reason === 'KVM_EXIT_IO') console.log(exit.io.port, exit.io.data);
 *
 * const { errno, value } = await vcpu.try.run({ immediate_exit: 1 });
 * console.log(errno, value?.reason); // EINTR KVM_EXIT_INTR
 * ```
 */
export class Vcpu extends withForms(class extends Handle {}, vcpuCalls) {
  /** The same descriptor as a file, for fstat, fcntl and the like. */
  get file(): File {
    return new File(this.caller, this.descriptor);
  }
}
