import type { Frame } from '../../../dram.js';
import { gpa, PAGE_SIZE, pfn, pfnToHpa } from '../../../units.js';
import { type Command, input } from '../../command.js';
import type { Firmware } from '../../firmware.js';
import type { Activation } from '../../guest-context.js';
import { type PageSize, pagesIn, type RmpEntry } from '../../rmp.js';
import { STATUS, type Status } from '../../status.js';
import { SNP_PAGE_MD_INIT, SNP_PAGE_SWAP_IN, SNP_PAGE_SWAP_OUT } from '../command-buffers.js';
import { type SnpGuestCall, snpGuestCommand } from '../snp-command.js';
import type { SnpGuest, SnpLaunch } from '../snp-guest.js';
import { hasSnpPolicy, SNP_POLICY } from '../snp-policy.js';
import { ENTRY_FLAG, METADATA_ENTRY, swapInPage, swapOutPage } from '../swapped-page.js';

/**
 * SNP_PAGE_MD_INIT, SNP_PAGE_SWAP_OUT and SNP_PAGE_SWAP_IN (sev-firmware.md 2.11, 3.18): the host takes a guest's pages
 * out of memory and puts them back. The states that pages are left in, and some statuses, are not verified.
 */

const PAGE_SIZE_2M = 1 << 0;
const TYPE = { DATA: 0, METADATA: 1, VMSA: 2 } as const;
const IN_PLACE = 1 << 3;
const ROOT_MDATA_EN = 1 << 4;

type SwapCall = SnpGuestCall<'launch' | 'running'>;

interface SwapRequest {
  readonly size: PageSize;
  readonly type: number;
  readonly inPlace: boolean;
  readonly useRoot: boolean;
}

function decodeFlags(flags: number, allowed: number): SwapRequest | null {
  const type = (flags >> 1) & 3;
  if ((flags & ~allowed) !== 0 || type > TYPE.VMSA) return null;
  const size = (flags & PAGE_SIZE_2M) === 0 ? '4k' : '2m';
  // Metadata and save areas are single pages.
  if (size === '2m' && type !== TYPE.DATA) return null;
  return { size, type, inPlace: (flags & IN_PLACE) !== 0, useRoot: (flags & ROOT_MDATA_EN) !== 0 };
}

/** The frames of a page of a size, or null if they are not all memory in use. */
function framesAt({ memory }: Firmware, address: number, size: PageSize): readonly Frame[] | null {
  const head = memory.frameAt(address);
  if (head === null || head.pfn % pagesIn(size) !== 0) return null;
  const frames: Frame[] = [];
  for (let index = 0; index < pagesIn(size); index++) {
    const frame = memory.frameAt(pfnToHpa(pfn(head.pfn + index)));
    if (frame === null) return null;
    frames.push(frame);
  }
  return frames;
}

/** A metadata page holds its owner's context address where a guest's page holds its guest address. */
const metadataOwner = (guest: SnpGuest) => gpa(pfnToHpa(guest.page));

/** Where an entry is kept: in a metadata page of the guest's, or in its context. */
interface EntryPlace {
  read(): Uint8Array;
  write(entry: Uint8Array): void;
}

function entryPlace({ firmware, guest, state }: SwapCall, address: number, useRoot: boolean): EntryPlace | Status {
  const { launch } = state;
  if (useRoot) {
    return {
      read: () => launch.rootEntry,
      write: (entry) => {
        launch.rootEntry = entry;
      },
    };
  }
  const offset = address % PAGE_SIZE;
  const frame = firmware.memory.frameAt(address - offset);
  if (frame === null || offset % METADATA_ENTRY.size !== 0) return STATUS.INVALID_ADDRESS;
  if (firmware.rmp.state(frame.pfn) !== 'metadata') return STATUS.INVALID_PAGE_STATE;
  if (firmware.rmp.entry(frame.pfn).gpa !== metadataOwner(guest)) return STATUS.INVALID_PAGE_OWNER;
  return {
    read: () => Uint8Array.from(frame.view(null).subarray(offset, offset + METADATA_ENTRY.size)),
    write: (entry) => frame.viewForUncachedWrite(null).set(entry, offset),
  };
}

/** What every swap command checks first. */
function checkSwap({ guest, state }: SwapCall): Activation | Status {
  if (hasSnpPolicy(state.launch.policy, SNP_POLICY.PAGE_SWAP_DISABLE)) return STATUS.POLICY_FAILURE;
  return guest.activation ?? STATUS.INACTIVE;
}

const snpPageMdInit = snpGuestCommand({
  name: 'SNP_PAGE_MD_INIT',
  states: ['launch', 'running'],
  buffer: input(SNP_PAGE_MD_INIT),
  run: ({ firmware: { memory, rmp }, guest, buffer }) => {
    const frame = memory.frameAt(SNP_PAGE_MD_INIT.pagePaddr.get(buffer));
    if (frame === null) return STATUS.INVALID_ADDRESS;
    if (rmp.state(frame.pfn) !== 'firmware') return STATUS.INVALID_PAGE_STATE;
    if (rmp.entry(frame.pfn).size !== '4k') return STATUS.INVALID_PAGE_SIZE;
    frame.overwrite(null, new Uint8Array(PAGE_SIZE));
    rmp.change(frame.pfn, { gpa: metadataOwner(guest) });
    return STATUS.SUCCESS;
  },
});

/** Whether a page may be swapped out as what the request says it is. */
function checkSource(
  { firmware: { rmp }, guest }: SwapCall,
  source: Frame,
  { type, size }: SwapRequest,
  { asid }: Activation,
): Status {
  const entry = rmp.entry(source.pfn);
  if (rmp.state(source.pfn) !== (type === TYPE.METADATA ? 'metadata' : 'pre-swap')) return STATUS.INVALID_PAGE_STATE;
  if (entry.size !== size) return STATUS.INVALID_PAGE_SIZE;
  if (type === TYPE.METADATA) return entry.gpa === metadataOwner(guest) ? STATUS.SUCCESS : STATUS.INVALID_PAGE_OWNER;
  if (entry.asid !== asid) return STATUS.INVALID_PAGE_OWNER;
  return entry.vmsa === (type === TYPE.VMSA) ? STATUS.SUCCESS : STATUS.INVALID_PARAM;
}

/** The entry of a page that goes out, but for its tag. */
function createEntry(launch: SnpLaunch, rmpEntry: RmpEntry, softwareData: bigint, { type, size }: SwapRequest): Uint8Array {
  const entry = new Uint8Array(METADATA_ENTRY.size);
  METADATA_ENTRY.softwareData.set(entry, softwareData);
  METADATA_ENTRY.iv.set(entry, launch.oekUses);
  const flags =
    ENTRY_FLAG.VALID |
    (rmpEntry.validated ? ENTRY_FLAG.PAGE_VALIDATED : 0n) |
    (rmpEntry.vmsa ? ENTRY_FLAG.VMSA : 0n) |
    (type === TYPE.METADATA ? ENTRY_FLAG.METADATA : 0n) |
    (size === '2m' ? ENTRY_FLAG.PAGE_SIZE : 0n);
  METADATA_ENTRY.flagsAndGpa.set(entry, flags | BigInt(rmpEntry.gpa));
  const [vmpl0, vmpl1, vmpl2, vmpl3] = rmpEntry.permissions;
  METADATA_ENTRY.permissions.set(entry, (vmpl0 | (vmpl1 << 8) | (vmpl2 << 16) | (vmpl3 << 24)) >>> 0);
  return entry;
}

function swapOut(call: SwapCall): Status {
  const { firmware, state, buffer } = call;
  const { memory, rmp } = firmware;
  const request = decodeFlags(SNP_PAGE_SWAP_OUT.flags.get(buffer), PAGE_SIZE_2M | (3 << 1) | ROOT_MDATA_EN);
  if (request === null) return STATUS.INVALID_PARAM;
  const activation = checkSwap(call);
  if (typeof activation === 'number') return activation;
  const source = framesAt(firmware, SNP_PAGE_SWAP_OUT.srcPaddr.get(buffer), request.size);
  const destination = SNP_PAGE_SWAP_OUT.dstPaddr.get(buffer);
  if (source === null || destination % PAGE_SIZE !== 0) return STATUS.INVALID_ADDRESS;
  const [head] = source;
  const status = checkSource(call, head, request, activation);
  if (status !== STATUS.SUCCESS) return status;
  const writable = memory.checkWrite([destination, source.length * PAGE_SIZE]);
  if (writable !== STATUS.SUCCESS) return writable;
  const place = entryPlace(call, SNP_PAGE_SWAP_OUT.mdataPaddr.get(buffer), request.useRoot);
  if (typeof place === 'number') return place;
  const key = request.type === TYPE.METADATA ? null : activation.key;
  const entry = createEntry(state.launch, rmp.entry(head.pfn), SNP_PAGE_SWAP_OUT.softwareData.get(buffer), request);
  const swapped = swapOutPage(state.launch.oek, entry, Buffer.concat(source.map((frame) => frame.view(key))));
  state.launch.oekUses += 1n;
  memory.write(destination, swapped.ciphertext, null);
  place.write(swapped.entry);
  rmp.setState(head.pfn, 'reclaim');
  return STATUS.SUCCESS;
}

/** Whether a page can be put where the request says: to where the entry says that the guest had it. */
function checkDestination(
  { firmware: { rmp } }: SwapCall,
  page: Frame,
  request: SwapRequest,
  entry: Uint8Array,
  { asid }: Activation,
): Status {
  const flagsAndGpa = METADATA_ENTRY.flagsAndGpa.get(entry);
  const has = (flag: bigint): boolean => (flagsAndGpa & flag) !== 0n;
  if (!has(ENTRY_FLAG.VALID) || has(ENTRY_FLAG.METADATA) !== (request.type === TYPE.METADATA)) return STATUS.INVALID_MDATA_ENTRY;
  if (has(ENTRY_FLAG.VMSA) !== (request.type === TYPE.VMSA) || has(ENTRY_FLAG.PAGE_SIZE) !== (request.size === '2m')) {
    return STATUS.INVALID_MDATA_ENTRY;
  }
  if (rmp.state(page.pfn) !== (request.type === TYPE.METADATA ? 'firmware' : 'pre-guest')) return STATUS.INVALID_PAGE_STATE;
  const found = rmp.entry(page.pfn);
  if (found.size !== request.size) return STATUS.INVALID_PAGE_SIZE;
  if (request.type === TYPE.METADATA) return STATUS.SUCCESS;
  if (found.asid !== asid) return STATUS.INVALID_PAGE_OWNER;
  return BigInt(found.gpa) === (flagsAndGpa >> 12n) << 12n ? STATUS.SUCCESS : STATUS.INVALID_MDATA_ENTRY;
}

/** Gives a page that came back the rights and the validation that it had. */
function restoreEntry({ firmware: { rmp }, guest }: SwapCall, page: Frame, { type }: SwapRequest, entry: Uint8Array): void {
  if (type === TYPE.METADATA) {
    rmp.change(page.pfn, { gpa: metadataOwner(guest) });
    return;
  }
  const flags = METADATA_ENTRY.flagsAndGpa.get(entry);
  const permissions = METADATA_ENTRY.permissions.get(entry);
  rmp.change(page.pfn, {
    immutable: false,
    validated: (flags & ENTRY_FLAG.PAGE_VALIDATED) !== 0n,
    vmsa: (flags & ENTRY_FLAG.VMSA) !== 0n,
    permissions: [0, 8, 16, 24].map((shift) => (permissions >>> shift) & 0xff),
  });
}

function swapIn(call: SwapCall): Status {
  const { firmware, state, buffer } = call;
  const request = decodeFlags(SNP_PAGE_SWAP_IN.flags.get(buffer), PAGE_SIZE_2M | (3 << 1) | IN_PLACE | ROOT_MDATA_EN);
  if (request === null) return STATUS.INVALID_PARAM;
  const activation = checkSwap(call);
  if (typeof activation === 'number') return activation;
  const destination = framesAt(firmware, SNP_PAGE_SWAP_IN.dstPaddr.get(buffer), request.size);
  const source = request.inPlace ? destination : framesAt(firmware, SNP_PAGE_SWAP_IN.srcPaddr.get(buffer), request.size);
  if (destination === null || source === null) return STATUS.INVALID_ADDRESS;
  const place = entryPlace(call, SNP_PAGE_SWAP_IN.mdataPaddr.get(buffer), request.useRoot);
  if (typeof place === 'number') return place;
  const entry = place.read();
  const [head] = destination;
  const status = checkDestination(call, head, request, entry, activation);
  if (status !== STATUS.SUCCESS) return status;
  const ciphertext = Buffer.concat(source.map((frame) => frame.view(null)));
  const plaintext = swapInPage(state.launch.oek, { ciphertext, entry });
  if (plaintext === null) return STATUS.BAD_MEASUREMENT;
  const key = request.type === TYPE.METADATA ? null : activation.key;
  destination.forEach((frame, index) => {
    frame.overwrite(key, plaintext.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE));
  });
  restoreEntry(call, head, request, entry);
  // An entry serves once: a page cannot be put back twice, nor an old one in its place.
  place.write(new Uint8Array(METADATA_ENTRY.size));
  return STATUS.SUCCESS;
}

const snpPageSwapOut = snpGuestCommand({
  name: 'SNP_PAGE_SWAP_OUT',
  states: ['launch', 'running'],
  buffer: input(SNP_PAGE_SWAP_OUT),
  run: swapOut,
});

const snpPageSwapIn = snpGuestCommand({
  name: 'SNP_PAGE_SWAP_IN',
  states: ['launch', 'running'],
  buffer: input(SNP_PAGE_SWAP_IN),
  run: swapIn,
});

export const snpSwapCommands: readonly Command[] = [snpPageMdInit, snpPageSwapOut, snpPageSwapIn];
