import { PAGE_SIZE } from '../../../units.js';
import { blob, struct, u32, u64 } from '../../byte-layout.js';
import { type Command, input } from '../../command.js';
import type { Firmware } from '../../firmware.js';
import { deriveKey } from '../../kdf.js';
import { STATUS, type Status } from '../../status.js';
import { createReport, REPORT, type ReportSigner } from '../attestation-report.js';
import { SNP_GUEST_REQUEST } from '../command-buffers.js';
import { CPUID_ENTRIES_MAX, CPUID_ENTRY, CPUID_PAGE, checkCpuidPage } from '../cpuid-page.js';
import { deriveGuestKey, GUEST_FIELDS_DEFINED, KEY_REQUEST } from '../derived-key.js';
import { type GuestMessage, MESSAGE_TYPE, openMessage, parseMessage, sealMessage } from '../guest-message.js';
import { snpGuestCommand } from '../snp-command.js';
import type { SnpGuestStateOf } from '../snp-guest.js';
import { decodeTcb, isTcbAtMost } from '../tcb.js';
import { versionedChipKey, versionedLoadedKey } from '../versioned-keys.js';

/** SNP_GUEST_REQUEST (sev-firmware.md 3.11): values of CPUID, reports, derived keys and the time stamp counter's parameters. */

type Running = SnpGuestStateOf<'running'>;

const VMPL_MAX = 3;

const REPORT_REQUEST = struct(96, { reportData: blob(0, 64), vmpl: u32(64), keySelect: u32(68) });
const REPORT_RESPONSE = struct(32 + REPORT.size, { status: u32(0), reportSize: u32(4), report: blob(32, REPORT.size) });
const CPUID_RESPONSE = struct(CPUID_PAGE.size, { status: u32(0), count: u32(4) });
const KEY_RESPONSE = struct(64, { status: u32(0), key: blob(32, 32) });
const TSC_INFO_REQUEST_LENGTH = 128;
const TSC_INFO_RESPONSE = struct(128, { status: u32(0), tscScale: u64(8), tscOffset: u64(16), tscFactor: u32(24) });

/** KEY_SEL of requests: VLEK if one is loaded, else VCEK; or one of them. */
const KEY_SELECT = { ANY: 0, VCEK: 1, VLEK: 2 } as const;
const KEY_SELECT_MASK = 3;

type EndorsementKey =
  | { readonly kind: 'VCEK' }
  /** `hashstick`: what the key is derived from. */
  | { readonly kind: 'VLEK'; readonly hashstick: Uint8Array };

/** The key that KEY_SEL names, or why there is none. */
function selectKey({ vlek }: Firmware, select: number): EndorsementKey | Status {
  if (select === KEY_SELECT.VCEK) return { kind: 'VCEK' };
  if (select === KEY_SELECT.ANY && vlek === null) return { kind: 'VCEK' };
  if (select > KEY_SELECT.VLEK) return STATUS.INVALID_PARAM;
  return vlek === null ? STATUS.INVALID_KEY : { kind: 'VLEK', hashstick: vlek.hashstick };
}

/** A VMPL may speak for itself and for less privileged ones. */
const mayActFor = (message: GuestMessage, vmpl: number): boolean => vmpl >= message.vmpck && vmpl <= VMPL_MAX;

/** The key that signs a guest's reports; launched with VCEK_DIS it has no right to the VCEK. */
function selectSigner(firmware: Firmware, { end }: Running, select: number): ReportSigner | Status {
  const { chipSecret, snpConfig } = firmware;
  const key = selectKey(firmware, select);
  if (typeof key === 'number') return key;
  if (key.kind === 'VLEK') return { kind: 'VLEK', key: () => versionedLoadedKey(key.hashstick, snpConfig.reportedTcb) };
  return end.vcekDisabled ? STATUS.INVALID_KEY : { kind: 'VCEK', key: () => versionedChipKey(chipSecret, snpConfig.reportedTcb) };
}

function answerReport(firmware: Firmware, state: Running, message: GuestMessage): Uint8Array | null {
  const request = message.payload;
  if (request.length !== REPORT_REQUEST.size || !REPORT_REQUEST.reservedIsZero(request)) return null;
  const vmpl = REPORT_REQUEST.vmpl.get(request);
  const select = REPORT_REQUEST.keySelect.get(request);
  if (select > KEY_SELECT_MASK) return null;
  const response = new Uint8Array(REPORT_RESPONSE.size);
  const signer = mayActFor(message, vmpl) ? selectSigner(firmware, state, select) : STATUS.INVALID_PARAM;
  if (typeof signer === 'number') {
    REPORT_RESPONSE.status.set(response, signer);
    return response;
  }
  const { version, smt, currentTcb, committedTcb, chipId, snpConfig } = firmware;
  const { reportedTcb, maskChipId, maskChipKey } = snpConfig;
  const shownChipId = maskChipId ? new Uint8Array(chipId.length) : chipId;
  const platform = { version, smt, currentTcb, committedTcb, reportedTcb, chipId: shownChipId, maskChipKey };
  const reportData = REPORT_REQUEST.reportData.get(request);
  REPORT_RESPONSE.reportSize.set(response, REPORT.size);
  REPORT_RESPONSE.report.set(response, createReport({ reportData, vmpl }, state.launch, state.end, platform, signer));
  return response;
}

/** ROOT_KEY_SELECT: bit 0 VMRK instead of an endorsement key, which bits 2:1 select as KEY_SEL. */
const ROOT_VMRK = 1 << 0;
const ROOT_KEY_SELECT_SHIFT = 1;
const ROOT_KEY_MASK = ROOT_VMRK | (KEY_SELECT_MASK << ROOT_KEY_SELECT_SHIFT);

/** The root of a derived key, or why the guest gets none: what it asks to be mixed in must not be newer than what there is. */
function selectRoot(firmware: Firmware, { launch, end }: Running, message: GuestMessage): Uint8Array | Status {
  const request = message.payload;
  const tcb = decodeTcb(KEY_REQUEST.tcbVersion.get(request));
  const committed = decodeTcb(firmware.committedTcb);
  if (!mayActFor(message, KEY_REQUEST.vmpl.get(request))) return STATUS.INVALID_PARAM;
  if (KEY_REQUEST.guestSvn.get(request) > (end.idBlock?.guestSvn ?? 0)) return STATUS.INVALID_PARAM;
  if (tcb === null || committed === null || !isTcbAtMost(tcb, committed)) return STATUS.INVALID_PARAM;
  const select = KEY_REQUEST.rootKeySelect.get(request);
  if ((select & ROOT_VMRK) !== 0) return launch.vmrk;
  const key = selectKey(firmware, select >> ROOT_KEY_SELECT_SHIFT);
  if (typeof key === 'number') return key;
  const secret = key.kind === 'VLEK' ? key.hashstick : firmware.chipSecret;
  return deriveKey(secret, 'sev-versioned-chip-endorsement-key', 32);
}

function answerKey(firmware: Firmware, state: Running, message: GuestMessage): Uint8Array | null {
  const request = message.payload;
  if (request.length !== KEY_REQUEST.size || !KEY_REQUEST.reservedIsZero(request)) return null;
  if ((KEY_REQUEST.rootKeySelect.get(request) & ~ROOT_KEY_MASK) !== 0) return null;
  if ((KEY_REQUEST.guestFieldSelect.get(request) & ~GUEST_FIELDS_DEFINED) !== 0n) return null;
  const response = new Uint8Array(KEY_RESPONSE.size);
  const root = selectRoot(firmware, state, message);
  if (typeof root === 'number') KEY_RESPONSE.status.set(response, root);
  else KEY_RESPONSE.key.set(response, deriveGuestKey(root, request, state.launch, state.end));
  return response;
}

/**
 * The values of CPUID that the guest has been told, judged as those of a CPUID page are; STATUS, and the count behind it, take
 * the place of the page's head. INVALID_PARAM comes with the values that would be accepted. Which lengths a request may have
 * is not verified: here whatever holds its entries.
 */
function answerCpuid({ asidKeys }: Firmware, { payload }: GuestMessage): Uint8Array | null {
  if (payload.length < CPUID_PAGE.size || payload.length > CPUID_PAGE.size + CPUID_ENTRIES_MAX * CPUID_ENTRY.size) return null;
  const count = CPUID_PAGE.count.get(payload);
  if (payload.length < CPUID_PAGE.size + count * CPUID_ENTRY.size) return null;
  const check = checkCpuidPage(payload, asidKeys.range);
  if (check.kind === 'malformed') return null;
  const response = Uint8Array.from(check.kind === 'corrected' ? check.page : payload);
  CPUID_RESPONSE.status.set(response, check.kind === 'corrected' ? STATUS.INVALID_PARAM : STATUS.SUCCESS);
  CPUID_RESPONSE.count.set(response, count);
  return response;
}

/** The counter of the simulated part is not scaled: a guest sees the host's. */
function answerTscInfo(message: GuestMessage): Uint8Array | null {
  if (message.payload.length !== TSC_INFO_REQUEST_LENGTH || message.payload.some((byte) => byte !== 0)) return null;
  const response = new Uint8Array(TSC_INFO_RESPONSE.size);
  TSC_INFO_RESPONSE.tscScale.set(response, 1n << 32n);
  return response;
}

function answer(
  firmware: Firmware,
  state: Running,
  message: GuestMessage,
): { readonly type: number; readonly payload: Uint8Array } | null {
  const answers: Readonly<Record<number, () => Uint8Array | null>> = {
    [MESSAGE_TYPE.CPUID_REQ]: () => answerCpuid(firmware, message),
    [MESSAGE_TYPE.REPORT_REQ]: () => answerReport(firmware, state, message),
    [MESSAGE_TYPE.KEY_REQ]: () => answerKey(firmware, state, message),
    [MESSAGE_TYPE.TSC_INFO_REQ]: () => answerTscInfo(message),
  };
  const payload = answers[message.type]?.() ?? null;
  return payload === null ? null : { type: message.type + 1, payload };
}

/** The last sequence number after which a request and its answer still have one each. */
const SEQNO_MAX = 2n ** 64n - 3n;

/**
 * What a request may not have - another VMPL, a newer version, a key that is not there - is said in STATUS of the answer, and
 * the message counts: on hardware a key for a TCB version above the committed one came back as zeros, and a report for a more
 * privileged VMPL with 0x16 in it. A message that is none, or has reserved bits set, gets no answer at all.
 *
 * A message counts only if its sequence number is the successor of the last one; then it and its answer advance the
 * counter by two. On a failure the counter stays, so a guest must repeat the very same message or give the key up.
 * Which status a wrong number gets was observed to differ between firmware versions.
 */
const snpGuestRequest = snpGuestCommand({
  name: 'SNP_GUEST_REQUEST',
  states: ['running'],
  buffer: input(SNP_GUEST_REQUEST),
  run: ({ firmware, state, buffer }): Status => {
    const { memory, rmp } = firmware;
    const request = memory.frameAt(SNP_GUEST_REQUEST.requestPaddr.get(buffer));
    const response = memory.frameAt(SNP_GUEST_REQUEST.responsePaddr.get(buffer));
    if (request === null || response === null) return STATUS.INVALID_ADDRESS;
    if (rmp.state(request.pfn) !== 'hypervisor') return STATUS.INVALID_PARAM;
    const writable = memory.checkWrite([response.hpa, PAGE_SIZE]);
    if (writable !== STATUS.SUCCESS) return writable;
    const page = Uint8Array.from(request.view(null));
    const envelope = parseMessage(page);
    if (envelope === null) return STATUS.INVALID_PARAM;
    const { launch } = state;
    const key = launch.vmpcks[envelope.vmpck];
    const last = launch.messageCounts[envelope.vmpck];
    if (last > SEQNO_MAX) return STATUS.AEAD_OFLOW;
    if (envelope.seqno !== last + 1n) return STATUS.INVALID_PARAM;
    const message = openMessage(key, page);
    const reply = message === null ? null : answer(firmware, state, message);
    if (reply === null) return STATUS.INVALID_PARAM;
    launch.messageCounts[envelope.vmpck] = envelope.seqno + 1n;
    return memory.write(response.hpa, sealMessage(key, { ...reply, seqno: envelope.seqno + 1n, vmpck: envelope.vmpck }), null);
  },
});

export const snpGuestRequestCommands: readonly Command[] = [snpGuestRequest];
