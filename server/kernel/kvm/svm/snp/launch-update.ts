import { SNP_LAUNCH_UPDATE } from '../../../../hardware/amd/snp/command-buffers.js';
import { STATUS } from '../../../../hardware/amd/status.js';
import { gfn, gfnToGpa, PAGE_SIZE } from '../../../../hardware/units.js';
import { Failure, failed, type Result } from '../../../failure.js';
import { KVM_SEV_SNP_PAGE_TYPE, kvm_sev_snp_launch_update } from '../../../uapi/sev-structs.js';
import type { ValueOf } from '../../../uapi/struct.js';
import { kvmGmemPopulate, type PopulatedPage } from '../../gmem-populate.js';
import { copyParams, copyParamsOut, issueOnFd, type SevCall, type SevHandler } from '../sev-command.js';
import { isSevSnpGuest } from '../sev-info.js';
import { contextAddress } from './context.js';
import { rmpMakePrivate, snpPageReclaim } from './rmp.js';

const KERNEL_REF = 'snp_launch_update';
const PAGE = BigInt(PAGE_SIZE);
/** Guest frame numbers end here: beyond it there is no slot, and numbers stop being exact. */
const GFN_END = 2n ** 52n / PAGE;

type Params = ValueOf<typeof kvm_sev_snp_launch_update.fields>;

const invalid = (reason: string, field: string, given: number | bigint): Failure =>
  new Failure('EINVAL', reason, KERNEL_REF, { field, given: String(given) });

const PAGE_TYPES: readonly number[] = Object.values(KVM_SEV_SNP_PAGE_TYPE);

const check = ({ len, flags, type, uaddr }: Params): Failure | null => {
  if (len === 0n || len % PAGE !== 0n) return invalid('SNP_UPDATE_LENGTH', 'len', len);
  if (flags !== 0) return invalid('SNP_UPDATE_FLAGS', 'flags', flags);
  if (!PAGE_TYPES.includes(type)) return invalid('SNP_UPDATE_TYPE', 'type', type);
  if (type !== KVM_SEV_SNP_PAGE_TYPE.ZERO && uaddr % PAGE !== 0n) return invalid('SNP_UPDATE_ADDRESS', 'uaddr', uaddr);
  return null;
};

/**
 * `sev_gmem_post_populate`: userspace's contents go into the page, which then is the guest's. Of a CPUID page that the
 * firmware has refused userspace gets back what would be accepted.
 */
const postPopulate = (call: SevCall, { type, uaddr }: Params, { frame, page, index }: PopulatedPage): Failure | null => {
  const { module, sev, user } = call;
  const { frame: cells } = page;
  if (module.amd.rmp.entry(cells.pfn).assigned) return new Failure('EEXIST', 'PAGE_ALREADY_ASSIGNED', 'sev_gmem_post_populate');
  const source = uaddr + BigInt(index) * PAGE;
  if (type !== KVM_SEV_SNP_PAGE_TYPE.ZERO) {
    const contents = user.copyIn(source, PAGE_SIZE);
    if (failed(contents)) return contents;
    cells.viewForWrite(null).set(contents);
  }
  if (!rmpMakePrivate(module, cells, gfnToGpa(frame), sev.asid, true))
    return new Failure('EINVAL', 'RMPUPDATE_FAILED', 'sev_gmem_post_populate');
  const buffer = new Uint8Array(SNP_LAUNCH_UPDATE.size);
  SNP_LAUNCH_UPDATE.gctxPaddr.set(buffer, contextAddress(sev));
  SNP_LAUNCH_UPDATE.flags.set(buffer, type << 1);
  SNP_LAUNCH_UPDATE.pagePaddr.set(buffer, cells.hpa);
  const refused = issueOnFd(call, call.sevFd, 'SNP_LAUNCH_UPDATE', buffer, 'sev_gmem_post_populate');
  if (refused === null) {
    const token = module.kernel.sanitizer.contexts.tokenOf(call.vm);
    if (token !== null) module.kernel.sanitizer.frames.encrypted(cells, token);
    return null;
  }
  const reclaimed = snpPageReclaim(module, cells);
  if (reclaimed && type === KVM_SEV_SNP_PAGE_TYPE.CPUID && refused.fwError === STATUS.INVALID_PARAM)
    user.copyOut(source, Uint8Array.from(cells.view(null)));
  return refused;
};

/** Under slots_lock: how many pages have been populated. */
const populate = (call: SevCall, params: Params): Result<number> => {
  const { current, vm } = call;
  const start = params.gfn_start < GFN_END ? gfn(Number(params.gfn_start)) : null;
  const slot = start === null ? undefined : vm.memslots.find(start);
  if (start === null || slot === undefined || slot.gmem === null)
    return invalid('SNP_UPDATE_NO_GUEST_MEMFD', 'gfn_start', params.gfn_start);
  const npages = Number(params.len / PAGE);
  const count = kvmGmemPopulate(current, vm, slot, start, npages, (page) => postPopulate(call, params, page));
  if (!failed(count)) return count;
  return new Failure('EIO', count.reason, KERNEL_REF, { ...count.details, cause: count.errno }, count.fwError ?? STATUS.SUCCESS);
};

/**
 * KVM_SEV_SNP_LAUNCH_UPDATE (`snp_launch_update`): initial contents of private memory. It may end before the last page:
 * what is left to do is written back. EIO if not even the first page succeeded.
 */
export const snpLaunchUpdate: SevHandler = function* snpLaunchUpdate(call) {
  const { current, vm, sev } = call;
  if (!isSevSnpGuest(vm) || sev.snpContext === null)
    return new Failure('EINVAL', 'NO_SNP_CONTEXT', KERNEL_REF, { object: `vm ${vm.id}` });
  const params = copyParams(call, kvm_sev_snp_launch_update);
  if (failed(params)) return params;
  const refused = check(params);
  if (refused !== null) return refused;
  yield* vm.slotsLock.lock(current);
  const count = populate(call, params);
  vm.slotsLock.unlock(current);
  if (failed(count)) return count;
  const done = BigInt(count);
  const advanced = params.type === KVM_SEV_SNP_PAGE_TYPE.ZERO ? 0n : done * PAGE;
  const rest = { gfn_start: params.gfn_start + done, len: params.len - done * PAGE, uaddr: params.uaddr + advanced };
  return copyParamsOut(call, kvm_sev_snp_launch_update, { ...params, ...rest });
};
