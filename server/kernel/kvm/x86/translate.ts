import { failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_translation } from '../../uapi/kvm-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';

/** INVALID_GPA, as userspace sees it. */
const INVALID_GPA = (1n << 64n) - 1n;

/** Bits of a linear address that four levels of tables translate. */
const LINEAR_BITS = 48;

/**
 * KVM_TRANSLATE: a walk with the kernel's privileges. It never fails for an address (also one that is not canonical is walked, by
 * its low bits), and says of each that it is writable and not the user's. Of a protected guest the result means nothing [M].
 */
export const translate = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_translation);
  if (failed(request)) return request;
  const { arch } = vcpu;
  const { cpu, state } = arch;
  const linear = request.linear_address;
  arch.awaitedPage = null;
  const walked = state.paging ? cpu.translate(BigInt.asIntN(LINEAR_BITS, linear)) : null;
  if (walked === null && arch.awaitedPage !== null) return arch.awaitedPage;
  const physical = state.paging ? (walked === null ? INVALID_GPA : BigInt(walked.gpa)) : linear;
  const answer = { linear_address: linear, physical_address: physical, writeable: 1, usermode: 0 };
  return copyStructOut(arg, kvm_translation, { ...answer, valid: physical === INVALID_GPA ? 0 : 1 }) ?? 0;
};
