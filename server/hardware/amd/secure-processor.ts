import type { Charge, Primitive } from '../costs.js';
import type { Dram } from '../dram.js';
import { createEntropy, type Entropy } from '../entropy.js';
import type { Asid, Hpa, Pfn } from '../units.js';
import type { AsidKeys } from './asid-keys.js';
import type { Command } from './command.js';
import { COMMAND } from './command-ids.js';
import { attestationCommands } from './commands/attestation.js';
import { debugCommands } from './commands/debug.js';
import { downloadFirmwareCommands } from './commands/download-firmware.js';
import { guestManagementCommands } from './commands/guest-management.js';
import { launchCommands } from './commands/launch.js';
import { launchSecretCommands } from './commands/launch-secret.js';
import { packetCommands } from './commands/packets.js';
import { platformIdentityCommands } from './commands/platform-identity.js';
import { platformLifecycleCommands } from './commands/platform-lifecycle.js';
import { platformQueryCommands } from './commands/platform-query.js';
import { receiveCommands } from './commands/receive.js';
import { sendCommands } from './commands/send.js';
import type { Firmware } from './firmware.js';
import { FirmwareMemory } from './firmware-memory.js';
import type { GuestStateKind } from './guest-context.js';
import { createChipEndorsementKey, IdentityFactory } from './identity.js';
import type { KeyDistribution } from './key-distribution.js';
import type { FirmwareVersion } from './launch-digest.js';
import type { MemoryEncryptionEngine } from './memory-encryption.js';
import { createFlashStore } from './persistent-store.js';
import type { PlatformStateKind } from './platform-state.js';
import type { Rmp } from './rmp.js';
import type { SaveAreaIntegrity } from './save-area-integrity.js';
import { CPU_SIGNATURE } from './snp/attestation-report.js';
import { snpGuestManagementCommands } from './snp/commands/snp-guest-management.js';
import { snpGuestRequestCommands } from './snp/commands/snp-guest-request.js';
import { snpLaunchCommands } from './snp/commands/snp-launch.js';
import { snpPageCommands } from './snp/commands/snp-pages.js';
import { snpPlatformCommands } from './snp/commands/snp-platform.js';
import { snpSwapCommands } from './snp/commands/snp-swap.js';
import type { SnpGuestStateKind } from './snp/snp-guest.js';
import type { SnpMsrs } from './snp/snp-msrs.js';
import type { SnpPlatformStateKind } from './snp/snp-platform.js';
import { encodeTcb, type TcbVersion } from './snp/tcb.js';
import { VLEK_HASHSTICK_LENGTH, versionedChipKey, versionedLoadedKey, wrapVlek } from './snp/versioned-keys.js';
import { STATUS, type Status } from './status.js';

export interface SecureProcessorOptions {
  readonly dram: Dram;
  readonly engine: MemoryEncryptionEngine;
  readonly asidKeys: AsidKeys;
  readonly saveAreas: SaveAreaIntegrity;
  readonly rmp: Rmp;
  readonly snpMsrs: SnpMsrs;
  /** Everything random, and the chip's own secret, come from here. */
  readonly entropy: Entropy;
  readonly charge: Charge;
  /** Who endorsed this chip, and whose root it trusts. */
  readonly keyDistribution: KeyDistribution;
  /** @default 1.55 build 25 */
  readonly version?: FirmwareVersion;
}

/** What anybody may know of a guest context without its keys. */
export interface GuestSummary {
  readonly handle: number;
  readonly policy: number;
  readonly state: GuestStateKind;
  /** Null while inactive. */
  readonly asid: Asid | null;
}

export interface SnpGuestSummary {
  readonly page: Pfn;
  /** Null before SNP_LAUNCH_START. */
  readonly policy: bigint | null;
  readonly state: SnpGuestStateKind;
  /** Null while inactive. */
  readonly asid: Asid | null;
}

const DEFAULT_VERSION: FirmwareVersion = { major: 1, minor: 55, build: 25 };
/** Versions of the simulated part's boot loader, trusted execution environment, SNP firmware and microcode. */
const TCB: TcbVersion = { bootLoader: 4, tee: 0, snp: 22, microcode: 213 };
const { family, model, stepping } = CPU_SIGNATURE;
const FMS = ((family - 0xf) << 20) | (0xf << 8) | ((model & 0xf) << 4) | stepping;
const CHIP_SECRET_LENGTH = 32;
const CHIP_ID_LENGTH = 64;

const commands: readonly Command[] = [
  ...platformLifecycleCommands,
  ...platformQueryCommands,
  ...downloadFirmwareCommands,
  ...platformIdentityCommands,
  ...guestManagementCommands,
  ...launchCommands,
  ...launchSecretCommands,
  ...attestationCommands,
  ...sendCommands,
  ...receiveCommands,
  ...packetCommands,
  ...debugCommands,
  ...snpPlatformCommands,
  ...snpGuestManagementCommands,
  ...snpLaunchCommands,
  ...snpPageCommands,
  ...snpSwapCommands,
  ...snpGuestRequestCommands,
];

interface Mailbox {
  readonly command: Command;
  /** What a use of the command is charged as. */
  readonly primitive: Primitive;
}

const mailbox = new Map<number, Mailbox>(
  commands.map((command) => [COMMAND[command.name], { command, primitive: `psp_${command.name}` }]),
);

/**
 * The AMD Secure Processor with its SEV firmware. It has one mailbox and does one command at a time; the driver that
 * owns the mailbox (`drivers/crypto/ccp/sev-dev.c`) serialises its users.
 */
export class SecureProcessor {
  private readonly firmware: Firmware;
  private readonly keyDistribution: KeyDistribution;

  constructor({
    dram,
    engine,
    asidKeys,
    saveAreas,
    rmp,
    snpMsrs,
    entropy,
    charge,
    keyDistribution,
    version = DEFAULT_VERSION,
  }: SecureProcessorOptions) {
    this.keyDistribution = keyDistribution;
    const chipSecret = entropy.fork('chip secret').bytes(CHIP_SECRET_LENGTH);
    const tcb = encodeTcb(TCB);
    const cek = createChipEndorsementKey(chipSecret, version);
    const flash = createFlashStore();
    this.firmware = {
      version,
      memory: new FirmwareMemory(dram, rmp),
      engine,
      asidKeys,
      saveAreas,
      rmp,
      snpMsrs,
      smt: true,
      fms: FMS,
      charge,
      random: entropy.fork('random number generator'),
      chipSecret,
      chipId: entropy.fork('chip id').bytes(CHIP_ID_LENGTH),
      cek,
      rootKey: () => keyDistribution.root(),
      identities: new IdentityFactory(cek, () => this.firmware.version, entropy.fork('identity')),
      flash,
      store: flash,
      platform: { kind: 'uninit' },
      snp: { kind: 'uninit' },
      snpConfig: { reportedTcb: tcb, maskChipId: false, maskChipKey: false },
      currentTcb: tcb,
      committedTcb: tcb,
      vlek: null,
      lastHandle: 0,
    };
  }

  /**
   * Executes one command. `buffer` is the physical address of its command buffer (0 for a command without one), which
   * is in DRAM and into which the outputs go, also after a failure.
   * @param id a command id of `COMMAND`; any other is INVALID_COMMAND
   */
  issue(id: number, buffer: Hpa): Status {
    const entry = mailbox.get(id);
    if (entry === undefined) return STATUS.INVALID_COMMAND;
    this.firmware.charge(entry.primitive);
    return entry.command.execute(this.firmware, buffer);
  }

  get version(): FirmwareVersion {
    return this.firmware.version;
  }

  /** The chip's CEK certificate as AMD endorses it: what the key distribution service gives for the id of GET_ID. */
  endorsedCek(): Uint8Array {
    return this.keyDistribution.endorseChip(this.firmware.cek.certificate());
  }

  /** The X.509 certificate (DER) of the VCEK that signs reports now, as AMD's service gives it for GET_ID's id and the reported version. */
  vcekCertificate(): Uint8Array {
    const { chipSecret, chipId, snpConfig } = this.firmware;
    const { publicKey } = versionedChipKey(chipSecret, snpConfig.reportedTcb);
    return this.keyDistribution.certifyReportKey({ kind: 'VCEK', chipId }, publicKey, snpConfig.reportedTcb);
  }

  /** What AMD's service gives a customer for this chip: a wrapped hashstick for SNP_VLEK_LOAD, and the certificate (DER) of its key. */
  orderVlek(cspId: string): { readonly wrapped: Uint8Array; readonly certificate: Uint8Array } {
    const { chipSecret, snpConfig, currentTcb } = this.firmware;
    const service = createEntropy(`VLEK of ${cspId}`);
    const hashstick = service.bytes(VLEK_HASHSTICK_LENGTH);
    const { publicKey } = versionedLoadedKey(hashstick, snpConfig.reportedTcb);
    return {
      wrapped: wrapVlek(chipSecret, { hashstick, tcb: currentTcb }, service.bytes(12)),
      certificate: this.keyDistribution.certifyReportKey({ kind: 'VLEK', cspId }, publicKey, snpConfig.reportedTcb),
    };
  }

  get state(): PlatformStateKind {
    return this.firmware.platform.kind;
  }

  get snpState(): SnpPlatformStateKind {
    return this.firmware.snp.kind;
  }

  /** The SNP guests, by the page of their context, in the order of their creation. */
  snpGuests(): SnpGuestSummary[] {
    const { snp } = this.firmware;
    if (snp.kind === 'uninit') return [];
    return [...snp.guests.values()].map(({ page, state, activation }) => ({
      page,
      policy: state.kind === 'init' ? null : state.launch.policy,
      state: state.kind,
      asid: activation?.asid ?? null,
    }));
  }

  /** The guest contexts that exist, in order of their handles. */
  guests(): GuestSummary[] {
    const { platform } = this.firmware;
    if (platform.kind === 'uninit') return [];
    return [...platform.guests.values()].map(({ handle, policy, state, activation }) => ({
      handle,
      policy,
      state: state.kind,
      asid: activation?.asid ?? null,
    }));
  }
}
