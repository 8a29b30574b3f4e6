import type { Frame } from '../../../dram.js';
import { PAGE_SIZE, type Pfn, pfn, pfnToHpa } from '../../../units.js';
import { type Command, input } from '../../command.js';
import type { Firmware } from '../../firmware.js';
import type { Activation } from '../../guest-context.js';
import { type PageSize, pagesIn } from '../../rmp.js';
import { STATUS, type Status } from '../../status.js';
import { SNP_LAUNCH_FINISH, SNP_LAUNCH_START, SNP_LAUNCH_UPDATE } from '../command-buffers.js';
import { checkCpuidPage } from '../cpuid-page.js';
import { checkIdBlock, ID_AUTH, ID_BLOCK, type IdBlock } from '../id-block.js';
import { createSecretsPage } from '../secrets-page.js';
import { type SnpGuestCall, snpGuestCommand } from '../snp-command.js';
import type { SnpLaunch } from '../snp-guest.js';
import { extendSnpDigest, isPageType, PAGE_TYPE, type PageType, SNP_DIGEST_LENGTH } from '../snp-launch-digest.js';
import { checkSnpPolicy } from '../snp-policy.js';
import { METADATA_ENTRY } from '../swapped-page.js';

/** SNP_LAUNCH_START, SNP_LAUNCH_UPDATE and SNP_LAUNCH_FINISH (sev-firmware.md 2.11). */

const VMPL_KEY_LENGTH = 32;
const FULL_PERMISSIONS = 0xf;

/** A guest with a migration agent, or launched from an initial migration image, is not modelled: both bits are refused. */
const snpLaunchStart = snpGuestCommand({
  name: 'SNP_LAUNCH_START',
  states: ['init'],
  buffer: input(SNP_LAUNCH_START),
  run: ({ firmware, guest, buffer }) => {
    if (SNP_LAUNCH_START.flags.get(buffer) !== 0) return STATUS.INVALID_PARAM;
    const policy = SNP_LAUNCH_START.policy.get(buffer);
    const status = checkSnpPolicy(policy, firmware);
    if (status !== STATUS.SUCCESS) return status;
    const { random } = firmware;
    const launch: SnpLaunch = {
      policy,
      vek: random.bytes(16),
      vmpcks: [0, 1, 2, 3].map(() => random.bytes(VMPL_KEY_LENGTH)),
      messageCounts: [0n, 0n, 0n, 0n],
      vmrk: random.bytes(32),
      oek: random.bytes(32),
      oekUses: 0n,
      rootEntry: new Uint8Array(METADATA_ENTRY.size),
      reportId: random.bytes(32),
      launchTcb: firmware.currentTcb,
      gosvw: SNP_LAUNCH_START.gosvw.get(buffer),
      tscKhz: SNP_LAUNCH_START.desiredTscKhz.get(buffer),
      digest: new Uint8Array(SNP_DIGEST_LENGTH),
    };
    guest.state = { kind: 'launch', launch };
    return STATUS.SUCCESS;
  },
});

interface PageUpdate {
  readonly type: PageType;
  readonly size: PageSize;
  readonly permissions: readonly [number, number, number];
}

function decodeUpdate(buffer: Uint8Array): PageUpdate | null {
  const flags = SNP_LAUNCH_UPDATE.flags.get(buffer);
  const type = (flags >> 1) & 7;
  // Bit 4 is IMI_PAGE, which only a launch from an initial migration image may set; those above are reserved.
  if (flags > 0xf || !isPageType(type)) return null;
  const permissions = [
    SNP_LAUNCH_UPDATE.vmpl1Permissions.get(buffer),
    SNP_LAUNCH_UPDATE.vmpl2Permissions.get(buffer),
    SNP_LAUNCH_UPDATE.vmpl3Permissions.get(buffer),
  ] as const;
  if (permissions.some((each) => each > FULL_PERMISSIONS)) return null;
  return { type, size: (flags & 1) === 0 ? '4k' : '2m', permissions };
}

/** The frames of a page that waits for launch, or why it cannot be launched. */
function checkPages({ memory, rmp }: Firmware, address: number, size: PageSize, { asid }: Activation): readonly Frame[] | Status {
  const head = memory.frameAt(address);
  if (head === null || head.pfn % pagesIn(size) !== 0) return STATUS.INVALID_ADDRESS;
  if (rmp.state(head.pfn) !== 'pre-guest') return STATUS.INVALID_PAGE_STATE;
  if (rmp.entry(head.pfn).size !== size) return STATUS.INVALID_PAGE_SIZE;
  if (rmp.entry(head.pfn).asid !== asid) return STATUS.INVALID_PAGE_OWNER;
  const frames: Frame[] = [];
  for (let index = 0; index < pagesIn(size); index++) {
    const frame = memory.frameAt(pfnToHpa(pfn(head.pfn + index)));
    if (frame === null) return STATUS.INVALID_ADDRESS;
    frames.push(frame);
  }
  return frames;
}

/** Gives one page its contents under the guest's key. A CPUID page that is refused is left in the clear, corrected. */
function fillPage(firmware: Firmware, launch: SnpLaunch, frame: Frame, type: PageType, { key }: Activation): Status {
  if (type === PAGE_TYPE.ZERO) {
    frame.overwrite(key, new Uint8Array(PAGE_SIZE));
    return STATUS.SUCCESS;
  }
  if (type === PAGE_TYPE.SECRETS) {
    frame.overwrite(key, createSecretsPage(launch, firmware.fms));
    return STATUS.SUCCESS;
  }
  if (type === PAGE_TYPE.CPUID) {
    const check = checkCpuidPage(frame.view(null), firmware.asidKeys.range);
    if (check.kind === 'corrected') frame.overwrite(null, check.page);
    if (check.kind !== 'accepted') return STATUS.INVALID_PARAM;
  }
  frame.retype(null, key);
  return STATUS.SUCCESS;
}

function updatePages({ firmware, guest, state: { launch }, buffer }: SnpGuestCall<'launch'>): Status {
  const update = decodeUpdate(buffer);
  if (update === null) return STATUS.INVALID_PARAM;
  const { activation } = guest;
  if (activation === null) return STATUS.INACTIVE;
  const frames = checkPages(firmware, SNP_LAUNCH_UPDATE.pagePaddr.get(buffer), update.size, activation);
  if (typeof frames === 'number') return frames;
  const { rmp } = firmware;
  for (const frame of frames) {
    const plaintext = Uint8Array.from(frame.view(null));
    const status = fillPage(firmware, launch, frame, update.type, activation);
    if (status !== STATUS.SUCCESS) return status;
    const { gpa } = rmp.entry(frame.pfn);
    launch.digest = extendSnpDigest(launch.digest, { type: update.type, gpa, permissions: update.permissions, plaintext });
  }
  const head: Pfn = frames[0]?.pfn ?? pfn(0);
  rmp.change(head, {
    immutable: false,
    validated: true,
    vmsa: update.type === PAGE_TYPE.VMSA,
    permissions: [FULL_PERMISSIONS, ...update.permissions],
  });
  firmware.charge('psp_kib_digested', frames.length * 4);
  firmware.charge('psp_kib_encrypted', frames.length * 4);
  return STATUS.SUCCESS;
}

const snpLaunchUpdate = snpGuestCommand({
  name: 'SNP_LAUNCH_UPDATE',
  states: ['launch'],
  buffer: input(SNP_LAUNCH_UPDATE),
  run: updatePages,
});

const ID_BLOCK_EN = 1 << 0;
const AUTH_KEY_EN = 1 << 1;
const VCEK_DIS = 1 << 2;

function readIdBlock({ memory }: Firmware, { policy, digest }: SnpLaunch, buffer: Uint8Array): IdBlock | Status {
  const block = memory.read(SNP_LAUNCH_FINISH.idBlockPaddr.get(buffer), ID_BLOCK.size, null);
  const auth = memory.read(SNP_LAUNCH_FINISH.idAuthPaddr.get(buffer), ID_AUTH.size, null);
  if (block === null || auth === null) return STATUS.INVALID_ADDRESS;
  const hasAuthorKey = (SNP_LAUNCH_FINISH.flags.get(buffer) & AUTH_KEY_EN) !== 0;
  return checkIdBlock({ block, auth, hasAuthorKey, digest, policy });
}

const snpLaunchFinish = snpGuestCommand({
  name: 'SNP_LAUNCH_FINISH',
  states: ['launch'],
  buffer: input(SNP_LAUNCH_FINISH),
  run: ({ firmware, guest, state: { launch }, buffer }) => {
    const flags = SNP_LAUNCH_FINISH.flags.get(buffer);
    if ((flags & ~(ID_BLOCK_EN | AUTH_KEY_EN | VCEK_DIS)) !== 0) return STATUS.INVALID_PARAM;
    const idBlock = (flags & ID_BLOCK_EN) === 0 ? null : readIdBlock(firmware, launch, buffer);
    if (typeof idBlock === 'number') return idBlock;
    const end = { hostData: SNP_LAUNCH_FINISH.hostData.get(buffer), idBlock, vcekDisabled: (flags & VCEK_DIS) !== 0 };
    guest.state = { kind: 'running', launch, end };
    return STATUS.SUCCESS;
  },
});

export const snpLaunchCommands: readonly Command[] = [snpLaunchStart, snpLaunchUpdate, snpLaunchFinish];
