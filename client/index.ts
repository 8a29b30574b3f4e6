export type * from '../gen/messages.js';
export type { Host as HostInfo, Vm as VmInfo } from '../gen/messages.js';
export {
  CpuVendor,
  EncryptionKind,
  FindingDomain,
  GuestMemfdFlag,
  IoBus,
  KvmCap,
  KvmClockFlag,
  KvmCpuidFlag,
  KvmDeviceType,
  KvmExit,
  KvmExitIoDirection,
  KvmGuestdbg,
  KvmInternalErrorKind,
  KvmIoeventfdFlag,
  KvmIrqchipId,
  KvmIrqfdFlag,
  KvmIrqRoutingType,
  KvmMemFlag,
  KvmMemoryAttribute,
  KvmMemoryExitFlag,
  KvmMpStateValue,
  KvmMsiFlag,
  KvmMsrFilterAccess,
  KvmMsrFilterDefault,
  KvmSyncX86,
  KvmSystemEventType,
  KvmVcpueventFlag,
  KvmX86Group,
  KvmX86SevAttribute,
  KvmX86VmType,
  MigrationHalf,
  MigrationStanding,
  PostCopy,
  SevCmdId,
  SevGuestState,
  SevPolicyBit,
  SevRetCode,
  SnpPageType,
  SnpPolicyBit,
  VmState,
} from '../gen/messages.js';
export type { CallOptions } from './call.js';
export { Daemon, type DaemonOptions, startDaemon } from './daemon.js';
export { Device } from './device.js';
export { ERRNO, type Errno } from './errno.js';
export { EventFd } from './eventfd.js';
export { File } from './file.js';
export { GuestMemfd } from './guest-memfd.js';
export * as guestOwner from './guest-owner/index.js';
export { Descriptor, Handle } from './handle.js';
export { type Findings, type FindingsFilter, Host } from './host.js';
export { KeyDistribution } from './key-distribution.js';
export { Kvm } from './kvm.js';
export { type DeathCause, KvmError } from './kvm-error.js';
export type { ProcessEnd, ProcessEvent } from './lease.js';
export { type Loaded, Memory, type MmapOptions } from './memory.js';
export {
  type Migrated,
  type MigrateOptions,
  type MigrationAddress,
  type MigrationEnd,
  migrate,
  type ReceiveOptions,
  receiveVm,
  type SendOptions,
  sendVm,
  type TakeUpOptions,
  takeUpRelay,
  validateMigration,
} from './migrate.js';
export { type MovePhase, moveContext, validateMove } from './migration.js';
export { MigrationError } from './migration-error.js';
export { type Decision, introduce, Migrations } from './migrations.js';
export type { Answer, Outcome, Refusal } from './outcome.js';
export { POST_MOVE_POLICIES, type PostMovePolicyName } from './post-move-policy.js';
export { type IoctlArgument, Process, type Receiver, type SignalTarget } from './process.js';
export { type ReceivedGuest, receivedGuest } from './received-guest.js';
export { type RelayOptions, relayMigration } from './relay.js';
export { Sev } from './sev.js';
export { SevPlatform } from './sev-platform.js';
export { type AttachOptions, type ConnectOptions, DEFAULT_TARGET, SimKvm } from './sim-kvm.js';
export { TOLERATED_IOCTLS, type TolerantVm, tolerateMigratedVm } from './tolerate-migrated-vm.js';
export type { ClientTls } from './transports/tls.js';
export * from './uapi.js';
export { Vcpu } from './vcpu.js';
export type { VcpuExit } from './vcpu-exit.js';
export { Vm } from './vm.js';
export { startWorld, World } from './world.js';
