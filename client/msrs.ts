import type { KvmMsrEntry, KvmMsrs } from '../gen/messages.js';
import { present } from './syscall.js';

/** Room for indices that the MSR lists are asked with, unless told otherwise. */
export const MSR_INDICES = 1024;
/** Room for entries that CPUID tables are asked with, unless told otherwise: KVM_MAX_CPUID_ENTRIES. */
export const CPUID_ENTRIES = 256;

/** The value of KVM_GET_MSRS: `ret` says how many entries were read; the others are as they were sent. */
export const msrsRead = ({ ret, msrs }: { readonly ret: bigint; readonly msrs: KvmMsrs | null }): KvmMsrEntry[] =>
  present(msrs, 'msrs').entries.slice(0, Number(ret));
