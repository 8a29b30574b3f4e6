import { clearGhcbFields, GHCB, GHCB_EXIT, ghcbMsrCode, isGhcbFieldValid, setGhcbField } from '../../../hardware/amd/ghcb.js';
import { SvmExitCode } from '../../../hardware/cpu/types.js';
import type { Gpa } from '../../../hardware/units.js';
import { Failure } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import { KVM_EXIT, KVM_INTERNAL_ERROR } from '../../uapi/constants.js';
import { kvm_run__internal } from '../../uapi/kvm-run.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import type { Turn } from '../x86/vcpu-arch.js';
import { holdForSipi } from './ap-reset-hold.js';
import { monitor, msrAccess, mwait, rdpmc, rdtscp, vmmcall } from './ghcb-instructions.js';
import { GHCB_HV_FT_SUPPORTED, handleMsrProtocol, terminate } from './ghcb-msr.js';
import { answerRegisters, GHCB_ERR, type GhcbHandler, type GhcbRequest, reject, scratchArea, succeed } from './ghcb-request.js';
import { guestAddress, mapGuestPage, readGuest, writeGuest } from './guest-memory.js';
import { mmioRead, mmioWrite, portIn, portOut } from './sev-es-io.js';
import { isSevSnpGuest, toSevInfo } from './sev-info.js';
import type { SevModule } from './sev-module.js';
import { apCreation } from './snp/ap-creation.js';
import { extendedGuestRequest, guestRequest } from './snp/guest-request.js';
import { pageStateChange } from './snp/page-state-change.js';
import { physicalCpu, toSvm } from './vcpu-svm.js';

/** Bits of exit_info_1 of an IOIO exit (APM volume 2, 15.10.2). */
const IOIO = { IN: 1n, STRING: 4n, SIZE_SHIFT: 4n, SIZE_MASK: 7n, PORT_SHIFT: 16n } as const;

const mmioReadExit: GhcbHandler = (request) => {
  const address = guestAddress(request.info1);
  const area = scratchArea(request, request.info2);
  if (typeof area !== 'number') return area;
  if (address === null) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  return mmioRead(request.vcpu, address, Number(request.info2), (data) => {
    writeGuest(request.vcpu, area, data);
    return 'again';
  });
};

const mmioWriteExit: GhcbHandler = (request) => {
  const address = guestAddress(request.info1);
  const area = scratchArea(request, request.info2);
  if (typeof area !== 'number') return area;
  const data = readGuest(request.vcpu, area, Number(request.info2));
  if (address === null || data === null) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  return mmioWrite(request.vcpu, address, data);
};

const operandSize = (info1: bigint): 1 | 2 | 4 | null => {
  const size = Number((info1 >> IOIO.SIZE_SHIFT) & IOIO.SIZE_MASK);
  return size === 1 || size === 2 || size === 4 ? size : null;
};

const ioExit: GhcbHandler = (request) => {
  const { vcpu, info1, rax } = request;
  const size = operandSize(info1);
  if (size === null) return reject(request, GHCB_ERR.INVALID_INPUT);
  const port = Number((info1 >> IOIO.PORT_SHIFT) & 0xffffn);
  const isIn = (info1 & IOIO.IN) !== 0n;
  if ((info1 & IOIO.STRING) !== 0n) return stringIo(request, port, size, isIn);
  if (isIn)
    return portIn(vcpu, { port, size, count: 1 }, (data) => {
      let value = 0n;
      for (let index = size - 1; index >= 0; index--) value = (value << 8n) | BigInt(data[index] ?? 0);
      // A load of less than 32 bits leaves the rest of RAX as it is.
      const kept = size === 4 || rax === null ? 0n : (rax >> BigInt(8 * size)) << BigInt(8 * size);
      return answerRegisters(request, { rax: kept | value });
    });
  if (rax === null) return reject(request, GHCB_ERR.MISSING_INPUT);
  const data = Uint8Array.from({ length: size }, (_, index) => Number((rax >> BigInt(8 * index)) & 0xffn));
  return portOut(vcpu, { port, size, count: 1 }, data);
};

const INT_MAX = 2n ** 31n - 1n;

/** `sev_es_string_io`: exit_info_2 has the number of elements. */
const stringIo = (request: GhcbRequest, port: number, size: 1 | 2 | 4, isIn: boolean): Turn => {
  const { vcpu, info2 } = request;
  const length = info2 * BigInt(size);
  if (length > INT_MAX) return new Failure('EINVAL', 'STRING_IO_COUNT', 'sev_es_string_io', { given: String(info2) });
  const area = scratchArea(request, length);
  if (typeof area !== 'number') return area;
  const access = { port, size, count: Number(info2) };
  if (isIn)
    return portIn(vcpu, access, (data) => {
      writeGuest(vcpu, area, data);
      return 'again';
    });
  const data = readGuest(vcpu, area, Number(length));
  return data === null ? reject(request, GHCB_ERR.INVALID_SCRATCH_AREA) : portOut(vcpu, access, data);
};

/** The leaf whose answer depends on XCR0, which the guest has to show. */
const CPUID_XSTATE = 0xdn;

const cpuidExit: GhcbHandler = (request) => {
  const { vcpu, rax, rcx, xcr0 } = request;
  if (rax === null || rcx === null || (rax === CPUID_XSTATE && xcr0 === null)) return reject(request, GHCB_ERR.MISSING_INPUT);
  const { eax, ebx, ecx, edx } = vcpu.arch.cpuid.query(Number(rax & 0xffff_ffffn), Number(rcx & 0xffff_ffffn));
  const [a, b, c, d] = [eax, ebx, ecx, edx].map((value) => BigInt(value >>> 0));
  return answerRegisters(request, { rax: a, rbx: b, rcx: c, rdx: d });
};

/** exit_info_1: 0 sets the table's address, 1 asks for it. */
const apJumpTableExit: GhcbHandler = (request) => {
  const sev = toSevInfo(request.vcpu.vm);
  if (request.info1 === 0n) {
    sev.apJumpTable = request.info2;
    return succeed(request, 0n);
  }
  return request.info1 === 1n ? succeed(request, sev.apJumpTable) : reject(request, GHCB_ERR.INVALID_INPUT);
};

/** The CPU itself knows from IRET on that NMIs are open again, as those with virtual NMIs do: another one may be waiting. */
const nmiCompleteExit: GhcbHandler = ({ vcpu }) => {
  vcpu.arch.stat.nmi_window_exits++;
  vcpu.request(REQUEST.EVENT);
  return 'again';
};

const turnOf = (exit: VendorExit): Turn => {
  if (exit.kind === 'failed') return exit.failure;
  return exit.kind === 'handled' ? 'again' : 'to-user';
};

const HANDLERS: ReadonlyMap<bigint, GhcbHandler> = new Map<bigint, GhcbHandler>([
  [GHCB_EXIT.MMIO_READ, mmioReadExit],
  [GHCB_EXIT.MMIO_WRITE, mmioWriteExit],
  [GHCB_EXIT.NMI_COMPLETE, nmiCompleteExit],
  [GHCB_EXIT.AP_HLT_LOOP, ({ vcpu }) => turnOf(holdForSipi(vcpu, 'nae-event'))],
  [GHCB_EXIT.AP_JUMP_TABLE, apJumpTableExit],
  [GHCB_EXIT.HV_FEATURES, (request) => succeed(request, GHCB_HV_FT_SUPPORTED)],
  [GHCB_EXIT.PSC, pageStateChange],
  [GHCB_EXIT.AP_CREATION, apCreation],
  [GHCB_EXIT.GUEST_REQUEST, guestRequest],
  [GHCB_EXIT.EXT_GUEST_REQUEST, extendedGuestRequest],
  [GHCB_EXIT.TERMINATION, ({ vcpu, ghcb }) => turnOf(terminate(vcpu, BigInt(ghcb)))],
  [BigInt(SvmExitCode.IOIO), ioExit],
  [BigInt(SvmExitCode.CPUID), cpuidExit],
  [BigInt(SvmExitCode.MSR), msrAccess],
  [BigInt(SvmExitCode.VMMCALL), vmmcall],
  [BigInt(SvmExitCode.RDPMC), rdpmc],
  [BigInt(SvmExitCode.MONITOR), monitor],
  [BigInt(SvmExitCode.MWAIT), mwait],
  // The guest's own value is in its save area, which nobody else can change: what it says is noted, and nothing done.
  [BigInt(SvmExitCode.READ_DR7), () => 'again'],
  [BigInt(SvmExitCode.WRITE_DR7), (request) => (request.rax === null ? reject(request, GHCB_ERR.MISSING_INPUT) : 'again')],
  [BigInt(SvmExitCode.WBINVD), () => 'again'],
  [BigInt(SvmExitCode.INVD), () => 'again'],
  // `sev_es_validate_vmgexit` lets this pass, and svm has no handler for it: it never intercepts RDTSC.
  [BigInt(SvmExitCode.RDTSC), ({ vcpu, code }) => unhandled(vcpu, code)],
  [BigInt(SvmExitCode.RDTSCP), rdtscp],
  [GHCB_EXIT.UNSUPPORTED, ({ info1 }) => unsupportedEvent(info1)],
]);

/** A #VC that the guest could not handle: KVM_RUN is EINVAL. */
const unsupportedEvent = (info1: bigint): Failure =>
  new Failure('EINVAL', 'GHCB_UNSUPPORTED_EVENT', 'sev_handle_vmgexit', { exit_info_1: `0x${info1.toString(16)}` });

/** `svm_handle_invalid_exit`: a well-formed request that no exit handler of svm takes. */
const unhandled = (vcpu: Vcpu, code: bigint): Turn => {
  const data = [code, BigInt(physicalCpu(vcpu))];
  const suberror = KVM_INTERNAL_ERROR.UNEXPECTED_EXIT_REASON;
  vcpu.arch.run.exit(KVM_EXIT.INTERNAL_ERROR, kvm_run__internal, { suberror, ndata: data.length, data });
  return 'to-user';
};

/** `sev_es_validate_vmgexit`, as far as it looks at the block itself; its protocol version is not among it. Null: well-formed. */
const malformed = (page: Uint8Array): bigint | null => {
  if (GHCB.usage.get(page) !== 0) return GHCB_ERR.INVALID_USAGE;
  const needed = [GHCB.swExitCode, GHCB.swExitInfo1, GHCB.swExitInfo2];
  return needed.every((field) => isGhcbFieldValid(page, field)) ? null : GHCB_ERR.MISSING_INPUT;
};

/** `sev_es_sync_from_ghcb`: takes the request out of the block and declares its fields as used. */
const takeRequest = (module: SevModule, current: Task, vcpu: Vcpu, ghcb: Gpa, page: Uint8Array): GhcbRequest => {
  const valid = (field: typeof GHCB.rax): bigint | null => (isGhcbFieldValid(page, field) ? field.get(page) : null);
  const request: GhcbRequest = {
    module,
    current,
    vcpu,
    ghcb,
    code: GHCB.swExitCode.get(page),
    info1: GHCB.swExitInfo1.get(page),
    info2: GHCB.swExitInfo2.get(page),
    scratch: valid(GHCB.swScratch),
    rax: valid(GHCB.rax),
    rbx: valid(GHCB.rbx),
    rcx: valid(GHCB.rcx),
    rdx: valid(GHCB.rdx),
    xcr0: valid(GHCB.xcr0),
    cpl: isGhcbFieldValid(page, GHCB.cpl) ? BigInt(GHCB.cpl.get(page)) : null,
  };
  clearGhcbFields(page);
  return request;
};

/**
 * `sev_es_sync_to_ghcb`: whatever the request, the guest finds four registers declared in its block, as it left them or with
 * results.
 */
const syncRegisters = (page: Uint8Array, { rax, rbx, rcx, rdx }: GhcbRequest): void => {
  setGhcbField(page, GHCB.rax, rax ?? 0n);
  setGhcbField(page, GHCB.rbx, rbx ?? 0n);
  setGhcbField(page, GHCB.rcx, rcx ?? 0n);
  setGhcbField(page, GHCB.rdx, rdx ?? 0n);
};

/**
 * `sev_handle_vmgexit`: an encrypted guest asks the host for something. A GHCB that cannot be mapped, or none, resumes the
 * guest, which sees that nothing was done. EINVAL: an SNP guest uses a GHCB that it has not registered.
 */
export const handleVmgexit = (module: SevModule, current: Task, vcpu: Vcpu): Turn => {
  const { sevEs, vmcb } = toSvm(vcpu);
  const { ghcb } = vmcb;
  if (ghcb === null || ghcb === 0n) return 'again';
  if (ghcbMsrCode(ghcb) !== 0) return turnOf(handleMsrProtocol(vcpu, ghcb));
  const address = guestAddress(ghcb);
  const page = address === null ? null : mapGuestPage(vcpu, address);
  if (address === null || page === null) return 'again';
  const reason = malformed(page);
  const request = takeRequest(module, current, vcpu, address, page);
  if (isSevSnpGuest(vcpu.vm) && sevEs.ghcbRegisteredGpa !== ghcb)
    return new Failure('EINVAL', 'GHCB_NOT_REGISTERED', 'sev_handle_vmgexit', { ghcb: `0x${ghcb.toString(16)}` });
  syncRegisters(page, request);
  if (reason !== null) return reject(request, reason);
  setGhcbField(page, GHCB.swExitInfo1, 0n);
  setGhcbField(page, GHCB.swExitInfo2, 0n);
  const handler = HANDLERS.get(request.code);
  return handler === undefined ? reject(request, GHCB_ERR.INVALID_EVENT) : handler(request);
};
