import { hpa, hpaToPfn, PAGE_SIZE } from '../../../units.js';
import { struct, u32, u64 } from '../../byte-layout.js';
import { type Command, input } from '../../command.js';
import type { Firmware } from '../../firmware.js';
import type { FirmwareMemory } from '../../firmware-memory.js';
import type { PageRange, Rmp } from '../../rmp.js';
import { STATUS, type Status } from '../../status.js';
import {
  SNP_COMMIT,
  SNP_CONFIG,
  SNP_FEATURE_INFO,
  SNP_INIT_EX,
  SNP_PLATFORM_STATUS,
  SNP_SHUTDOWN_EX,
  SNP_STATUS_PAGE,
  SNP_VLEK_LOAD,
} from '../command-buffers.js';
import { FEATURE_INFO, FEATURE_LEGACY_COMMANDS, FIRMWARE_FEATURES } from '../feature-info.js';
import { snpPlatformCommand } from '../snp-command.js';
import { SNP_PLATFORM_STATE_NUMBER } from '../snp-platform.js';
import { decodeTcb, isTcbAtMost } from '../tcb.js';
import { unwrapVlek, WRAPPED_VLEK } from '../versioned-keys.js';

/** The platform commands of the SEV-SNP ABI (sev-firmware.md 2.10). */

const INIT_RMP = 1 << 0;
const LIST_PADDR_EN = 1 << 1;
/** The IOMMU stops to enforce the table; there is none here. */
const IOMMU_SNP_SHUTDOWN = 1 << 0;
const X86_SNP_SHUTDOWN = 1 << 1;
const MASK_CHIP_ID = 1 << 0;
const MASK_CHIP_KEY = 1 << 1;
const VLEK_EN = 1 << 2;
const FEATURE_INFO_AVAILABLE = 1 << 3;

/** The head of a list of pages that stay the hypervisor's, and one of the ranges that follow it. */
const RANGE_LIST = struct(8, { count: u32(0) });
const RANGE = struct(16, { base: u64(0), pageCount: u32(8) });

/** The checks on the rest of the machine, and the tables that initialisation makes. */
function initialise(firmware: Firmware, initRmp: boolean, fixed: readonly PageRange[]): Status {
  if (firmware.platform.kind !== 'uninit') return STATUS.INVALID_PLATFORM_STATE;
  if (!firmware.snpMsrs.isConsistent()) return STATUS.INVALID_CONFIG;
  if (!initRmp && !firmware.rmp.isActive) return STATUS.RMP_INIT_REQUIRED;
  if (initRmp) firmware.rmp.initialise(fixed);
  firmware.snp = { kind: 'init', guests: new Map() };
  firmware.asidKeys.invalidateUnused();
  return STATUS.SUCCESS;
}

/** The ranges of an SNP_INIT_EX list, which lies in one page, as Linux makes it (that a longer one is refused is not verified). */
function readFixedPages({ memory }: Firmware, address: number): readonly PageRange[] | Status {
  const head = memory.read(address, RANGE_LIST.size, null);
  if (head === null) return STATUS.INVALID_ADDRESS;
  const count = RANGE_LIST.count.get(head);
  if (RANGE_LIST.size + count * RANGE.size > PAGE_SIZE) return STATUS.INVALID_PARAM;
  const ranges: PageRange[] = [];
  for (let index = 0; index < count; index++) {
    const range = memory.read(address + RANGE_LIST.size + index * RANGE.size, RANGE.size, null);
    if (range === null) return STATUS.INVALID_ADDRESS;
    const first = Math.floor(Number(RANGE.base.get(range)) / PAGE_SIZE);
    ranges.push({ first, end: first + RANGE.pageCount.get(range) });
  }
  return ranges;
}

const snpInit = snpPlatformCommand({
  name: 'SNP_INIT',
  states: ['uninit'],
  buffer: null,
  run: (firmware) => initialise(firmware, true, []),
});

/** RAPL_DIS, CIPHERTEXT_HIDING_EN and TIO_EN are refused, as SNP_FEATURE_INFO has said. */
const snpInitEx = snpPlatformCommand({
  name: 'SNP_INIT_EX',
  states: ['uninit'],
  buffer: input(SNP_INIT_EX),
  run: (firmware, buffer) => {
    const flags = SNP_INIT_EX.flags.get(buffer);
    if ((flags & ~(INIT_RMP | LIST_PADDR_EN)) !== 0) return STATUS.INVALID_PARAM;
    const fixed = (flags & LIST_PADDR_EN) === 0 ? [] : readFixedPages(firmware, SNP_INIT_EX.listPaddr.get(buffer));
    return typeof fixed === 'number' ? fixed : initialise(firmware, (flags & INIT_RMP) !== 0, fixed);
  },
});

/** Destroys every guest. Before a flush it is refused, so that no line of a dead guest outlives the protection of its page. */
function shutdown(firmware: Firmware, deactivateRmp: boolean): Status {
  if (firmware.snp.kind === 'uninit') return STATUS.INVALID_PLATFORM_STATE;
  for (const { page, activation } of firmware.snp.guests.values()) {
    if (activation !== null) firmware.asidKeys.unload(activation.asid);
    firmware.rmp.setState(page, 'firmware');
  }
  firmware.snp.guests.clear();
  if (firmware.asidKeys.needsFlush) return STATUS.DFFLUSH_REQUIRED;
  firmware.snp = { kind: 'uninit' };
  if (deactivateRmp) firmware.rmp.deactivate();
  return STATUS.SUCCESS;
}

const snpShutdown = snpPlatformCommand({
  name: 'SNP_SHUTDOWN',
  states: ['init'],
  buffer: null,
  run: (firmware) => shutdown(firmware, false),
});

const snpShutdownEx = snpPlatformCommand({
  name: 'SNP_SHUTDOWN_EX',
  states: ['init'],
  buffer: input(SNP_SHUTDOWN_EX),
  run: (firmware, buffer) => {
    if (SNP_SHUTDOWN_EX.length.get(buffer) !== SNP_SHUTDOWN_EX.size) return STATUS.INVALID_LENGTH;
    const flags = SNP_SHUTDOWN_EX.flags.get(buffer);
    if ((flags & ~(IOMMU_SNP_SHUTDOWN | X86_SNP_SHUTDOWN)) !== 0) return STATUS.INVALID_PARAM;
    return shutdown(firmware, (flags & X86_SNP_SHUTDOWN) !== 0);
  },
});

/** An answer that must lie in one page, which goes back to the host on success: it is in the Reclaim state then. */
function writeInPage(memory: FirmwareMemory, rmp: Rmp, address: number, answer: Uint8Array): Status {
  if (address % PAGE_SIZE > PAGE_SIZE - answer.length) return STATUS.INVALID_ADDRESS;
  const status = memory.write(address, answer, null);
  if (status === STATUS.SUCCESS && rmp.isActive) rmp.setState(hpaToPfn(hpa(address)), 'reclaim');
  return status;
}

const snpPlatformStatus = snpPlatformCommand({
  name: 'SNP_PLATFORM_STATUS',
  states: ['uninit', 'init'],
  buffer: input(SNP_PLATFORM_STATUS),
  run: ({ memory, rmp, snp, snpConfig, currentTcb, vlek, version }, buffer) => {
    const page = new Uint8Array(SNP_STATUS_PAGE.size);
    SNP_STATUS_PAGE.apiMajor.set(page, version.major);
    SNP_STATUS_PAGE.apiMinor.set(page, version.minor);
    SNP_STATUS_PAGE.build.set(page, version.build);
    SNP_STATUS_PAGE.state.set(page, SNP_PLATFORM_STATE_NUMBER[snp.kind]);
    SNP_STATUS_PAGE.rmpFlags.set(page, rmp.isActive ? 1 : 0);
    const { maskChipId, maskChipKey, reportedTcb } = snpConfig;
    const masks = (maskChipId ? MASK_CHIP_ID : 0) | (maskChipKey ? MASK_CHIP_KEY : 0);
    SNP_STATUS_PAGE.flags.set(page, masks | (vlek === null ? 0 : VLEK_EN) | FEATURE_INFO_AVAILABLE);
    SNP_STATUS_PAGE.guestCount.set(page, snp.kind === 'init' ? snp.guests.size : 0);
    SNP_STATUS_PAGE.currentTcb.set(page, currentTcb);
    SNP_STATUS_PAGE.reportedTcb.set(page, reportedTcb);
    return writeInPage(memory, rmp, SNP_PLATFORM_STATUS.statusPaddr.get(buffer), page);
  },
});

/**
 * In which states it is legal, and the statuses of its errors, are not verified: Linux asks once, before SNP_INIT, for
 * sub-function 0, into a buffer that is aligned to 8 bytes and lies in one page.
 */
const snpFeatureInfo = snpPlatformCommand({
  name: 'SNP_FEATURE_INFO',
  states: ['uninit', 'init'],
  buffer: input(SNP_FEATURE_INFO),
  run: ({ memory, rmp }, buffer) => {
    if (SNP_FEATURE_INFO.length.get(buffer) !== SNP_FEATURE_INFO.size) return STATUS.INVALID_LENGTH;
    if (SNP_FEATURE_INFO.ecxIn.get(buffer) !== 0) return STATUS.INVALID_PARAM;
    const address = SNP_FEATURE_INFO.featureInfoPaddr.get(buffer);
    if (address % 8 !== 0) return STATUS.INVALID_ADDRESS;
    const info = new Uint8Array(FEATURE_INFO.size);
    FEATURE_INFO.ebx.set(info, FEATURE_LEGACY_COMMANDS);
    FEATURE_INFO.ecx.set(info, FIRMWARE_FEATURES);
    return writeInPage(memory, rmp, address, info);
  },
});

const snpDfFlush = snpPlatformCommand({
  name: 'SNP_DF_FLUSH',
  states: ['init'],
  buffer: null,
  run: ({ asidKeys }) => (asidKeys.flushDataFabric() === 'flushed' ? STATUS.SUCCESS : STATUS.WBINVD_REQUIRED),
});

const snpConfig = snpPlatformCommand({
  name: 'SNP_CONFIG',
  states: ['init'],
  buffer: input(SNP_CONFIG),
  run: (firmware, buffer) => {
    const flags = SNP_CONFIG.flags.get(buffer);
    if ((flags & ~(MASK_CHIP_ID | MASK_CHIP_KEY)) !== 0) return STATUS.INVALID_PARAM;
    const asked = SNP_CONFIG.reportedTcb.get(buffer);
    const reportedTcb = asked === 0n ? firmware.committedTcb : asked;
    const [reported, committed] = [decodeTcb(reportedTcb), decodeTcb(firmware.committedTcb)];
    if (reported === null || committed === null || !isTcbAtMost(reported, committed)) return STATUS.INVALID_PARAM;
    firmware.snpConfig = { reportedTcb, maskChipId: (flags & MASK_CHIP_ID) !== 0, maskChipKey: (flags & MASK_CHIP_KEY) !== 0 };
    return STATUS.SUCCESS;
  },
});

/** Reports claim the version that is committed from then on, whatever SNP_CONFIG has said (Documentation/virt/coco/sev-guest.rst). */
const snpCommit = snpPlatformCommand({
  name: 'SNP_COMMIT',
  states: ['init'],
  buffer: input(SNP_COMMIT),
  run: (firmware, buffer) => {
    if (SNP_COMMIT.length.get(buffer) !== SNP_COMMIT.size) return STATUS.INVALID_LENGTH;
    firmware.committedTcb = firmware.currentTcb;
    firmware.snpConfig = { ...firmware.snpConfig, reportedTcb: firmware.currentTcb };
    return STATUS.SUCCESS;
  },
});

/** The status of a hashstick that was altered is not verified. */
const snpVlekLoad = snpPlatformCommand({
  name: 'SNP_VLEK_LOAD',
  states: ['init'],
  buffer: input(SNP_VLEK_LOAD),
  run: (firmware, buffer) => {
    if (SNP_VLEK_LOAD.length.get(buffer) !== SNP_VLEK_LOAD.size) return STATUS.INVALID_LENGTH;
    if (SNP_VLEK_LOAD.wrappedVersion.get(buffer) !== 0) return STATUS.INVALID_PARAM;
    const wrapped = firmware.memory.read(SNP_VLEK_LOAD.wrappedPaddr.get(buffer), WRAPPED_VLEK.size, null);
    if (wrapped === null) return STATUS.INVALID_ADDRESS;
    const vlek = unwrapVlek(firmware.chipSecret, wrapped);
    if (vlek === null) return STATUS.BAD_MEASUREMENT;
    firmware.vlek = vlek;
    return STATUS.SUCCESS;
  },
});

export const snpPlatformCommands: readonly Command[] = [
  snpInit,
  snpInitEx,
  snpShutdown,
  snpShutdownEx,
  snpPlatformStatus,
  snpFeatureInfo,
  snpDfFlush,
  snpConfig,
  snpCommit,
  snpVlekLoad,
];
