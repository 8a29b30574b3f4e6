import { pfn, pfnToHpa } from '../../../units.js';
import { type Command, input } from '../../command.js';
import type { Firmware } from '../../firmware.js';
import { PAGES_PER_2M, type PageSize, pagesIn } from '../../rmp.js';
import { STATUS, type Status } from '../../status.js';
import { SNP_DBG, SNP_PAGE, SNP_PAGE_MOVE } from '../command-buffers.js';
import { type SnpGuestCall, snpCommand, snpGuestCommand } from '../snp-command.js';
import { hasSnpPolicy, SNP_POLICY } from '../snp-policy.js';

/** SNP_PAGE_RECLAIM, SNP_PAGE_UNSMASH, SNP_PAGE_MOVE, SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT (sev-firmware.md 1.6, 2.11). */

/** The states that pages go to when the host reclaims them are not verified for pages of guests. */
function reclaim({ memory, rmp }: Firmware, address: number): Status {
  const size: PageSize = address % 2 === 0 ? '4k' : '2m';
  const frame = memory.frameAt(address - (address % 2));
  if (frame === null || frame.pfn % pagesIn(size) !== 0) return STATUS.INVALID_ADDRESS;
  const state = rmp.state(frame.pfn);
  if (state !== 'metadata' && state !== 'firmware' && state !== 'pre-guest' && state !== 'pre-swap')
    return STATUS.INVALID_PAGE_STATE;
  if (rmp.entry(frame.pfn).size !== size) return STATUS.INVALID_PAGE_SIZE;
  if (state === 'pre-guest' || state === 'pre-swap') rmp.change(frame.pfn, { immutable: false });
  else rmp.setState(frame.pfn, 'reclaim');
  return STATUS.SUCCESS;
}

const snpPageReclaim = snpCommand({
  name: 'SNP_PAGE_RECLAIM',
  buffer: input(SNP_PAGE),
  run: (firmware, _platform, buffer) => reclaim(firmware, SNP_PAGE.pagePaddr.get(buffer)),
});

const snpPageUnsmash = snpCommand({
  name: 'SNP_PAGE_UNSMASH',
  buffer: input(SNP_PAGE),
  run: ({ memory, rmp }, _platform, buffer) => {
    const address = SNP_PAGE.pagePaddr.get(buffer);
    const frame = memory.frameAt(address - (address % 2));
    if (frame === null || frame.pfn % PAGES_PER_2M !== 0) return STATUS.INVALID_ADDRESS;
    return rmp.unsmash(frame.pfn) ? STATUS.SUCCESS : STATUS.INVALID_PAGE_STATE;
  },
});

/** Moves a page that waits for it to another address of DRAM, where it is encrypted anew: the guest sees no difference. */
function movePage({ firmware, guest, state, buffer }: SnpGuestCall<'launch' | 'running'>): Status {
  const { memory, rmp } = firmware;
  const flags = SNP_PAGE_MOVE.flags.get(buffer);
  if (flags > 1) return STATUS.INVALID_PARAM;
  if (hasSnpPolicy(state.launch.policy, SNP_POLICY.PAGE_SWAP_DISABLE)) return STATUS.POLICY_FAILURE;
  const { activation } = guest;
  if (activation === null) return STATUS.INACTIVE;
  const size: PageSize = flags === 0 ? '4k' : '2m';
  const source = memory.frameAt(SNP_PAGE_MOVE.srcPaddr.get(buffer));
  const destination = memory.frameAt(SNP_PAGE_MOVE.dstPaddr.get(buffer));
  if (source === null || destination === null) return STATUS.INVALID_ADDRESS;
  if (source.pfn % pagesIn(size) !== 0 || destination.pfn % pagesIn(size) !== 0) return STATUS.INVALID_ADDRESS;
  if (rmp.state(source.pfn) !== 'pre-swap' || rmp.state(destination.pfn) !== 'pre-guest') return STATUS.INVALID_PAGE_STATE;
  const [from, to] = [rmp.entry(source.pfn), rmp.entry(destination.pfn)];
  if (from.size !== size || to.size !== size) return STATUS.INVALID_PAGE_SIZE;
  if (from.asid !== activation.asid || to.asid !== activation.asid) return STATUS.INVALID_PAGE_OWNER;
  for (let index = 0; index < pagesIn(size); index++) {
    const [old, fresh] = [source, destination].map(({ pfn: head }) => memory.frameAt(pfnToHpa(pfn(head + index))));
    if (old === undefined || old === null || fresh === undefined || fresh === null) return STATUS.INVALID_ADDRESS;
    fresh.overwrite(activation.key, old.view(activation.key));
  }
  rmp.change(destination.pfn, { ...from, gpa: to.gpa, immutable: false });
  rmp.setState(source.pfn, 'reclaim');
  return STATUS.SUCCESS;
}

const snpPageMove = snpGuestCommand({
  name: 'SNP_PAGE_MOVE',
  states: ['launch', 'running'],
  buffer: input(SNP_PAGE_MOVE),
  run: movePage,
});

type Direction = 'decrypt' | 'encrypt';

/** One page of a guest whose policy allows it: to a page of the firmware's, or from any page. */
function debug({ firmware, guest, state, buffer }: SnpGuestCall<'launch' | 'running'>, direction: Direction): Status {
  const { memory, rmp } = firmware;
  if (!hasSnpPolicy(state.launch.policy, SNP_POLICY.DEBUG)) return STATUS.POLICY_FAILURE;
  const { activation } = guest;
  if (activation === null) return STATUS.INACTIVE;
  const source = memory.frameAt(SNP_DBG.srcPaddr.get(buffer));
  const destination = memory.frameAt(SNP_DBG.dstPaddr.get(buffer));
  if (source === null || destination === null) return STATUS.INVALID_ADDRESS;
  const guestPage = direction === 'decrypt' ? source : destination;
  if (rmp.entry(guestPage.pfn).asid !== activation.asid) return STATUS.INVALID_PAGE_OWNER;
  if (direction === 'encrypt') {
    destination.overwrite(activation.key, source.view(null));
    return STATUS.SUCCESS;
  }
  return memory.write(destination.hpa, Uint8Array.from(source.view(activation.key)), null);
}

const snpDbgDecrypt = snpGuestCommand({
  name: 'SNP_DBG_DECRYPT',
  states: ['launch', 'running'],
  buffer: input(SNP_DBG),
  run: (call) => debug(call, 'decrypt'),
});

const snpDbgEncrypt = snpGuestCommand({
  name: 'SNP_DBG_ENCRYPT',
  states: ['launch', 'running'],
  buffer: input(SNP_DBG),
  run: (call) => debug(call, 'encrypt'),
});

export const snpPageCommands: readonly Command[] = [snpPageReclaim, snpPageUnsmash, snpPageMove, snpDbgDecrypt, snpDbgEncrypt];
