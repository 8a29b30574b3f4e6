import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_one_reg, kvm_reg_list } from '../../uapi/kvm-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { copyU64In, copyU64Out } from './copy-word.js';
import { getMsr, setMsr } from './msrs.js';

/** KVM_X86_REG_MSR(index): x86, 64 bits, type MSR, index in the low half. */
const MSR_REGISTER = 0x2030_0002n;

/** The MSR that a register id names. EINVAL: x86 has no other registers of this kind here. */
const msrOf = (id: bigint): Result<number> =>
  id >> 32n === MSR_REGISTER
    ? Number(id & 0xffff_ffffn)
    : new Failure('EINVAL', 'REGISTER_UNKNOWN', 'kvm_get_set_one_reg', { field: 'id', given: `0x${id.toString(16)}` });

/** KVM_GET_ONE_REG and KVM_SET_ONE_REG (`kvm_get_set_one_reg`): MSRs, one at a time. */
export const oneReg = (vcpu: Vcpu, arg: IoctlArg, write: boolean): Result<number> => {
  const request = copyStruct(arg, kvm_one_reg);
  if (failed(request)) return request;
  const index = msrOf(request.id);
  if (failed(index)) return index;
  const refused = new Failure('EINVAL', 'MSR_REFUSED', 'kvm_get_set_one_reg', { msr: `0x${index.toString(16)}` });
  if (!write) {
    const value = getMsr(vcpu, index, true);
    return value === null ? refused : (copyU64Out(arg.user, request.addr, value) ?? 0);
  }
  const value = copyU64In(arg.user, request.addr);
  if (failed(value)) return value;
  return setMsr(vcpu, index, value, true) ? 0 : refused;
};

/** KVM_GET_REG_LIST: only registers that are no MSRs are listed, and there are none. */
export const getRegList = (arg: IoctlArg): Result<number> => {
  const list = copyStruct(arg, kvm_reg_list);
  return failed(list) ? list : (copyStructOut(arg, kvm_reg_list, { n: 0n }) ?? 0);
};
