import { PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import { OPEN } from '../kernel/fs/file.js';
import { InlineCopy } from '../kernel/fs/inline-copy.js';
import { isSevEsGuest, toSevInfo } from '../kernel/kvm/svm/sev-info.js';
import {
  deactivate,
  openGuestPage,
  openSaveArea,
  PACKET_HEADER_BYTES,
  type PlatformCertificates,
  platformCertificates,
  reactivate,
  receiveFinishCommand,
  restoreSevVcpuState,
  type SealedPage,
  sealGuestPage,
  sealSaveArea,
  sendCancelCommand,
  sendFinishCommand,
  sevVcpuState,
  transportReceive,
  transportSend,
} from '../kernel/kvm/svm/sev-transport.js';
import type { Vcpu } from '../kernel/kvm/vcpu.js';
import { VM_TYPE, type Vm } from '../kernel/kvm/vm.js';
import type { Task } from '../kernel/sched/task.js';
import type { MightSleep } from '../kernel/sched/wait.js';
import { open } from '../kernel/syscalls/descriptors.js';
import { KVM_SEV_CMD, kvm_sev_cmd, kvm_sev_init } from '../kernel/uapi/sev-structs.js';
import type { BatchRoom } from './batch-room.js';
import type { GuestDescription, PageBatch } from './guest.js';
import type { GuestKind } from './guest-kind.js';
import { checkBatch, guestPage, logArrivals, readClear, writeClear } from './guest-pages.js';
import { restorePart, saveState } from './guest-state.js';
import { fromWords, PART, type StatePart, words } from './state-parts.js';

/** SEV and SEV-ES: private pages and save areas travel as packets of the firmware, shared pages in the clear. */

/** Lengths as 32-bit little-endian numbers, each before its blob. */
const encodeBlobs = (blobs: readonly Uint8Array[]): Uint8Array => {
  const out = new Uint8Array(blobs.reduce((sum, { length }) => sum + 4 + length, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const blob of blobs) {
    view.setUint32(at, blob.length, true);
    out.set(blob, at + 4);
    at += 4 + blob.length;
  }
  return out;
};

const decodeBlobs = (bytes: Uint8Array, count: number): Uint8Array[] | null => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const blobs: Uint8Array[] = [];
  let at = 0;
  while (at + 4 <= bytes.length && blobs.length < count) {
    const length = view.getUint32(at, true);
    blobs.push(bytes.slice(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return at === bytes.length && blobs.length === count ? blobs : null;
};

const malformed = (what: string): Failure => new Failure('EINVAL', 'MIGRATION_BLOB_MALFORMED', 'server/migration', { what });

const begin = (vm: Vm, target: Uint8Array): Result<Uint8Array> => {
  const [pdh, chain, amd] = decodeBlobs(target, 3) ?? [];
  if (pdh === undefined || chain === undefined || amd === undefined) return malformed('certificates');
  const own = platformCertificates(vm.kernel);
  if (failed(own)) return own;
  const certificates: PlatformCertificates = { pdh, chain, amd };
  const session = transportSend(vm, certificates);
  if (failed(session)) return session;
  const policy = words([BigInt(session.policy)]);
  return encodeBlobs([policy, session.session, own.pdh]);
};

const sealPages = (vm: Vm, gfns: readonly number[], room: BatchRoom): Result<PageBatch> => {
  const headers = new Uint8Array(gfns.length * PACKET_HEADER_BYTES);
  const memory = room.take(gfns.length * PAGE_SIZE);
  const data = memory.bytes;
  for (const [index, frame] of gfns.entries()) {
    const page = guestPage(vm, frame, false);
    if (failed(page)) return page;
    const sealed = sealGuestPage(vm, page, frame * PAGE_SIZE);
    if (failed(sealed)) return sealed;
    headers.set(sealed.header, index * PACKET_HEADER_BYTES);
    data.set(sealed.data, index * PAGE_SIZE);
  }
  return { form: 'sealed', gfns, headers, data, memory };
};

const receive = (vm: Vm, batch: PageBatch): Failure | null => {
  const refused = checkBatch(batch, PACKET_HEADER_BYTES);
  if (refused !== null) return refused;
  if (batch.form === 'clear') return writeClear(vm, batch);
  logArrivals(vm, batch.gfns);
  for (const [index, frame] of batch.gfns.entries()) {
    const page = guestPage(vm, frame, true);
    if (failed(page)) return page;
    const header = batch.headers.subarray(index * PACKET_HEADER_BYTES, (index + 1) * PACKET_HEADER_BYTES);
    const data = batch.data.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
    const failure = openGuestPage(vm, page, frame * PAGE_SIZE, { header, data });
    if (failure !== null) return failure;
  }
  return null;
};

const HOLDS = ['none', 'nae-event', 'msr-protocol'] as const;

const saveAreaParts = (vcpu: Vcpu): Result<StatePart[]> => {
  const sealed = sealSaveArea(vcpu);
  if (failed(sealed)) return sealed;
  const { ghcb, apResetHold, receivedFirstSipi, cr0, cr4, efer } = sevVcpuState(vcpu);
  const own = words([ghcb, BigInt(HOLDS.indexOf(apResetHold)), receivedFirstSipi ? 1n : 0n, cr0, cr4, efer]);
  const head = { index: vcpu.index, request: 0 };
  return [
    { ...head, kind: PART.SAVE_AREA, bytes: Uint8Array.from([...sealed.header, ...sealed.data]) },
    { ...head, kind: PART.SEV_VCPU, bytes: own },
  ];
};

/** Save areas last: as soon as they are there, KVM's registers mean nothing. */
const state = (vm: Vm): Result<StatePart[]> => {
  const parts = saveState(vm);
  if (failed(parts)) return parts;
  const { apJumpTable, ghcbVersion } = toSevInfo(vm);
  parts.push({ kind: PART.SEV_VM, index: 0, request: 0, bytes: words([apJumpTable, BigInt(ghcbVersion)]) });
  if (!isSevEsGuest(vm)) return parts;
  for (const vcpu of vm.vcpus) {
    const own = saveAreaParts(vcpu);
    if (failed(own)) return own;
    parts.push(...own);
  }
  return parts;
};

const restoreSevVm = (vm: Vm, { bytes }: StatePart): null => {
  const [apJumpTable = 0n, ghcbVersion = 0n] = fromWords(bytes);
  Object.assign(toSevInfo(vm), { apJumpTable, ghcbVersion: Number(ghcbVersion) });
  return null;
};

const restoreSevVcpu = (vcpu: Vcpu, part: StatePart): Failure | null => {
  if (part.kind === PART.SAVE_AREA) {
    const sealed: SealedPage = {
      header: part.bytes.subarray(0, PACKET_HEADER_BYTES),
      data: part.bytes.subarray(PACKET_HEADER_BYTES),
    };
    return sealed.data.length === PAGE_SIZE ? openSaveArea(vcpu, sealed) : malformed('save area');
  }
  const [ghcb = 0n, hold = 0n, sipi = 0n, cr0 = 0n, cr4 = 0n, efer = 0n] = fromWords(part.bytes);
  const apResetHold = HOLDS[Number(hold)] ?? 'none';
  restoreSevVcpuState(vcpu, { ghcb, apResetHold, receivedFirstSipi: sipi !== 0n, cr0, cr4, efer });
  return null;
};

const restore = (vm: Vm, part: StatePart): Failure | null => {
  if (part.kind === PART.SEV_VM) return restoreSevVm(vm, part);
  if (part.kind !== PART.SAVE_AREA && part.kind !== PART.SEV_VCPU) return restorePart(vm, part);
  const vcpu = vm.vcpus[part.index];
  return vcpu === undefined || !isSevEsGuest(vm) ? malformed('vCPU') : restoreSevVcpu(vcpu, part);
};

const hostWithoutSev = (): Failure => new Failure('EINVAL', 'HOST_WITHOUT_SEV', 'server/migration');

/**
 * KVM_SEV_INIT or KVM_SEV_ES_INIT, or KVM_SEV_INIT2 for the types that want it; and `/dev/sev`, by which KVM lets the VMM
 * issue the guest's commands afterwards (KVM_SEV_GUEST_STATUS).
 */
function* initialise(
  current: Task,
  vm: Vm,
  { encryptedState, vmsaFeatures }: GuestDescription,
): MightSleep<Result<readonly number[]>> {
  const { memEncIoctl } = vm.kernel.ops;
  if (memEncIoctl === undefined) return hostWithoutSev();
  const legacy = encryptedState ? KVM_SEV_CMD.ES_INIT : KVM_SEV_CMD.INIT;
  const id = vm.type === VM_TYPE.DEFAULT ? legacy : KVM_SEV_CMD.INIT2;
  const user = new InlineCopy(vm.mm);
  const data = user.place(kvm_sev_init.encode({ vmsa_features: vmsaFeatures }));
  const result = yield* memEncIoctl(current, vm, { value: user.place(kvm_sev_cmd.encode({ id, data })), user });
  if (failed(result)) return result;
  const fd = yield* open(vm.kernel, current, '/dev/sev', OPEN.RDWR);
  if (failed(fd)) return fd;
  toSevInfo(vm).fd = fd;
  return [fd];
}

/** A failure after which the guest has no key any more is one of the platform: it is not resumed behind anybody's back. */
const mustWork = (failure: Failure | null): void => {
  if (failure !== null) throw new Error(`the secure processor refused what it has to do: ${failure.reason} ${failure.fwError}`);
};

export const sevKind: GuestKind = {
  name: 'sev',
  runsWithoutKey: false,
  // A page comes into the guest by RECEIVE_UPDATE_DATA, which the firmware refuses once the guest runs (state RUNNING).
  whyNoPostCopy: 'the firmware takes no page after RECEIVE_FINISH, without which the guest does not run',

  source: (vm: Vm) => ({
    begin: (target) => begin(vm, target),
    seal: (owed, count, room) => {
      const taken = owed.take(count, (frame) => vm.arch.sharedFrames.has(frame));
      if (taken === null) return null;
      return taken.alike ? readClear(vm, taken.gfns, room) : sealPages(vm, taken.gfns, room);
    },
    state: () => state(vm),
    fence: () => deactivate(vm),
    unfence: () => mustWork(reactivate(vm)),
    cancel: () => mustWork(sendCancelCommand(vm)),
    finish: () => mustWork(sendFinishCommand(vm)),
  }),

  target: (kernel) => {
    const certificates = platformCertificates(kernel);
    if (failed(certificates)) return certificates;
    return encodeBlobs([certificates.pdh, certificates.chain, certificates.amd]);
  },
  // `/dev/sev`.
  otherFds: 1,
  whyNotInitialised: ({ ops }, process, { encryptedState }) =>
    ops.validateMemEncInit === undefined ? hostWithoutSev() : ops.validateMemEncInit(process, encryptedState),
  initialise,
  destination: (vm: Vm) => ({
    begin: (opening) => {
      const [policy, session, pdh] = decodeBlobs(opening, 3) ?? [];
      if (policy === undefined || session === undefined || pdh === undefined) return malformed('session');
      return transportReceive(vm, { policy: Number(fromWords(policy)[0] ?? 0n), session }, pdh);
    },
    receive: (batch) => receive(vm, batch),
    restore: (part) => restore(vm, part),
    prepare: () => receiveFinishCommand(vm),
  }),
};
