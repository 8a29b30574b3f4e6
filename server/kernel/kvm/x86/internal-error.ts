import { Vector } from '../../../hardware/cpu/registers.js';
import type { CpuExit, MemoryAccess } from '../../../hardware/cpu/types.js';
import { SvmExitCode } from '../../../hardware/cpu/types.js';
import { KVM_EXIT, KVM_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION_FLAG } from '../../uapi/constants.js';
import { kvm_run__emulation_failure, kvm_run__internal } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { queueException } from './inject.js';
import type { Turn } from './vcpu-arch.js';

/** Words of debug data behind what is told of the instruction: exit reason, two of exit information, event, error code. */
const DEBUG_WORDS = 5;
/** Words of the overlay of an emulation failure: flags, and the instruction's size and bytes. */
const FLAGS_WORD = 1;
const INSTRUCTION_WORDS = 3;
const NOP = 0x90;
const INSTRUCTION_BYTES_MAX = 15;

/** `prepare_emulation_failure_exit`. @param bytes of the instruction, as far as they could be fetched; null: none */
const exitEmulationFailure = (vcpu: Vcpu, bytes: Uint8Array | null): Turn => {
  const given = bytes !== null && bytes.length > 0;
  const ndata = (given ? INSTRUCTION_WORDS : FLAGS_WORD) + DEBUG_WORDS;
  const suberror = KVM_INTERNAL_ERROR.EMULATION;
  if (!given) {
    vcpu.arch.run.exit(KVM_EXIT.INTERNAL_ERROR, kvm_run__emulation_failure, { suberror, ndata, flags: 0n });
    return 'to-user';
  }
  const padded = new Uint8Array(INSTRUCTION_BYTES_MAX).fill(NOP);
  padded.set(bytes.subarray(0, INSTRUCTION_BYTES_MAX));
  vcpu.arch.run.exit(KVM_EXIT.INTERNAL_ERROR, kvm_run__emulation_failure, {
    suberror,
    ndata,
    flags: BigInt(KVM_INTERNAL_ERROR_EMULATION_FLAG.INSTRUCTION_BYTES),
    insn_size: Math.min(bytes.length, INSTRUCTION_BYTES_MAX),
    insn_bytes: padded,
  });
  return 'to-user';
};

/**
 * `handle_emulation_failure`: the guest gets #UD, and userspace an exit if the guest's kernel was running, or if it
 * asked for one in any case (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
 */
export const emulationFailure = (vcpu: Vcpu, bytes: Uint8Array | null): Turn => {
  const { arch, vm } = vcpu;
  arch.stat.insn_emulation_fail++;
  if (vm.arch.exitOnEmulationError) return exitEmulationFailure(vcpu, bytes);
  queueException(vcpu, Vector.UD);
  return arch.state.cpl === 0 ? exitEmulationFailure(vcpu, bytes) : 'again';
};

const exitInternalError = (vcpu: Vcpu, suberror: number, data: readonly bigint[]): Turn => {
  vcpu.arch.run.exit(KVM_EXIT.INTERNAL_ERROR, kvm_run__internal, { suberror, ndata: data.length, data: [...data] });
  return 'to-user';
};

/** Error code of a nested page fault (APM volume 2, 15.25.6): at the guest's own address, as every one a user's access. */
const NPF_ERROR = (1n << 32n) | 4n;
const NPF_WRITE = 2n;

/**
 * `kvm_prepare_event_vectoring_exit`: an access that has to be emulated, made while an event was on its way through the
 * IDT. KVM cannot do that. Told are EXITINFO2, the exit's code, EXITINFO1, the address, and the last CPU entered on.
 */
export const exitDeliveringEvent = (vcpu: Vcpu, address: number, access: MemoryAccess): Turn => {
  const error = NPF_ERROR | (access === 'write' ? NPF_WRITE : 0n);
  const gpa = BigInt(address);
  return exitInternalError(vcpu, KVM_INTERNAL_ERROR.DELIVERY_EV, [gpa, BigInt(SvmExitCode.NPF), error, gpa, 0n]);
};

/** `svm_handle_invalid_exit`: an exit that nothing here has asked for. */
export const exitUnexpected = (vcpu: Vcpu, exit: CpuExit): Turn => {
  const code = exit.kind === 'write-trap' ? 0x90n : exit.kind === 'exception' ? 0x40n + BigInt(exit.vector) : 0xffff_ffffn;
  return exitInternalError(vcpu, KVM_INTERNAL_ERROR.UNEXPECTED_EXIT_REASON, [code, 0n]);
};
