import type { Charge } from '../costs.js';
import type { Entropy } from '../entropy.js';
import type { AmdCertificate } from './amd-certificate.js';
import type { AsidKeys } from './asid-keys.js';
import type { FirmwareMemory } from './firmware-memory.js';
import type { Endorsed, IdentityFactory } from './identity.js';
import type { FirmwareVersion } from './launch-digest.js';
import type { MemoryEncryptionEngine } from './memory-encryption.js';
import type { PersistentStore } from './persistent-store.js';
import type { PlatformState } from './platform-state.js';
import type { Rmp } from './rmp.js';
import type { SaveAreaIntegrity } from './save-area-integrity.js';
import type { SnpMsrs } from './snp/snp-msrs.js';
import type { SnpConfig, SnpPlatform } from './snp/snp-platform.js';
import type { Vlek } from './snp/versioned-keys.js';

/** What the commands of the secure processor work on. */
export interface Firmware {
  version: FirmwareVersion;
  readonly memory: FirmwareMemory;
  readonly engine: MemoryEncryptionEngine;
  readonly asidKeys: AsidKeys;
  readonly saveAreas: SaveAreaIntegrity;
  readonly rmp: Rmp;
  readonly snpMsrs: SnpMsrs;
  /** Whether simultaneous multithreading is on. */
  readonly smt: boolean;
  /** Family, model and stepping as CPUID function 1 has them. */
  readonly fms: number;
  readonly charge: Charge;
  /** The random number generator: guest keys, nonces and initialisation vectors, in the order of the commands. */
  readonly random: Entropy;
  /** Fused into the chip; everything that must be the same after a reset is derived from it. */
  readonly chipSecret: Uint8Array;
  /** What GET_ID gives: 64 bytes for the one socket. */
  readonly chipId: Uint8Array;
  readonly cek: Endorsed;
  /** AMD's root, whose hash real chips have in fuses. */
  readonly rootKey: () => AmdCertificate;
  readonly identities: IdentityFactory;
  /** The chip's own store, which INIT uses. */
  readonly flash: PersistentStore;
  /** The store of the last INIT or INIT_EX; PLATFORM_RESET erases it while the platform is UNINIT. */
  store: PersistentStore;
  platform: PlatformState;
  snp: SnpPlatform;
  snpConfig: SnpConfig;
  /** Version of the trusted computing base that runs, and the one that cannot be rolled back. */
  readonly currentTcb: bigint;
  committedTcb: bigint;
  /** Loaded by SNP_VLEK_LOAD. */
  vlek: Vlek | null;
  /** The handle that the last guest got. */
  lastHandle: number;
}
