import type { Charge } from '../costs.js';
import type { Dram } from '../dram.js';
import type { Entropy } from '../entropy.js';
import type { Asid, Hpa } from '../units.js';
import type { AsidKeys } from './asid-keys.js';
import type { Command } from './command.js';
import { COMMAND } from './command-ids.js';
import { attestationCommands } from './commands/attestation.js';
import { debugCommands } from './commands/debug.js';
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
import { STATUS, type Status } from './status.js';

export interface SecureProcessorOptions {
  readonly dram: Dram;
  readonly engine: MemoryEncryptionEngine;
  readonly asidKeys: AsidKeys;
  readonly rmp: Rmp;
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

const DEFAULT_VERSION: FirmwareVersion = { major: 1, minor: 55, build: 25 };
const CHIP_SECRET_LENGTH = 32;
const CHIP_ID_LENGTH = 64;

const commands: readonly Command[] = [
  ...platformLifecycleCommands,
  ...platformQueryCommands,
  ...platformIdentityCommands,
  ...guestManagementCommands,
  ...launchCommands,
  ...launchSecretCommands,
  ...attestationCommands,
  ...sendCommands,
  ...receiveCommands,
  ...packetCommands,
  ...debugCommands,
];

const commandsById = new Map<number, Command>(commands.map((command) => [COMMAND[command.name], command]));

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
    rmp,
    entropy,
    charge,
    keyDistribution,
    version = DEFAULT_VERSION,
  }: SecureProcessorOptions) {
    this.keyDistribution = keyDistribution;
    const chipSecret = entropy.fork('chip secret').bytes(CHIP_SECRET_LENGTH);
    const cek = createChipEndorsementKey(chipSecret, version);
    const flash = createFlashStore();
    this.firmware = {
      version,
      memory: new FirmwareMemory(dram, rmp),
      engine,
      asidKeys,
      charge,
      random: entropy.fork('random number generator'),
      chipSecret,
      chipId: entropy.fork('chip id').bytes(CHIP_ID_LENGTH),
      cek,
      rootKey: () => keyDistribution.root(),
      identities: new IdentityFactory(cek, version, entropy.fork('identity')),
      flash,
      store: flash,
      platform: { kind: 'uninit' },
      lastHandle: 0,
    };
  }

  /**
   * Executes one command. `buffer` is the physical address of its command buffer (0 for a command without one), which
   * is in DRAM and into which the outputs go, also after a failure.
   * @param id a command id of `COMMAND`; any other is INVALID_COMMAND
   */
  issue(id: number, buffer: Hpa): Status {
    const command = commandsById.get(id);
    if (command === undefined) return STATUS.INVALID_COMMAND;
    this.firmware.charge(`psp_${command.name}`);
    return command.execute(this.firmware, buffer);
  }

  get version(): FirmwareVersion {
    return this.firmware.version;
  }

  /** The chip's CEK certificate as AMD endorses it: what the key distribution service gives for the id of GET_ID. */
  endorsedCek(): Uint8Array {
    return this.keyDistribution.endorseChip(this.firmware.cek.certificate());
  }

  get state(): PlatformStateKind {
    return this.firmware.platform.kind;
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
