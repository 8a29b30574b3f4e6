import { clearGhcbFields, GHCB, GHCB_EXIT, ghcbMsrCode, isGhcbFieldValid, setGhcbField } from '../../../hardware/amd/ghcb.js';
import { SvmExitCode } from '../../../hardware/cpu/types.js';
import { type Gpa, PAGE_SIZE } from '../../../hardware/units.js';
import { Failure } from '../../failure.js';
import { KVM_EXIT, KVM_INTERNAL_ERROR } from '../../uapi/constants.js';
import { kvm_run__internal } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import type { Turn } from '../x86/vcpu-arch.js';
import { holdForSipi } from './ap-reset-hold.js';
import { handleMsrProtocol, terminate } from './ghcb-msr.js';
import { guestAddress, mapGuestPage, readGuest, writeGuest } from './guest-memory.js';
import { mmioRead, mmioWrite, portIn, portOut } from './sev-es-io.js';
import { toSevInfo } from './sev-info.js';
import { physicalCpu, toSvm } from './vcpu-svm.js';

/** `GHCB_SCRATCH_AREA_LIMIT`. */
const SCRATCH_LIMIT = 16 * 1024;

/** What the host writes into `sw_exit_info_1` when a request is malformed, and why into `sw_exit_info_2`. */
const MALFORMED_INPUT = 2n;
const GHCB_ERR = {
  INVALID_USAGE: 2n,
  INVALID_SCRATCH_AREA: 3n,
  MISSING_INPUT: 4n,
  INVALID_INPUT: 5n,
  INVALID_EVENT: 6n,
} as const;

/** Bits of exit_info_1 of an IOIO exit (APM volume 2, 15.10.2). */
const IOIO = { IN: 1n, STRING: 4n, SIZE_SHIFT: 4n, SIZE_MASK: 7n, PORT_SHIFT: 16n } as const;

/** What a guest has put into its GHCB (`sev_es_sync_from_ghcb`). */
interface Request {
  readonly vcpu: Vcpu;
  readonly ghcb: Gpa;
  readonly code: bigint;
  readonly info1: bigint;
  readonly info2: bigint;
  readonly scratch: bigint | null;
  /** Null where the guest has not declared the register as valid. */
  readonly rax: bigint | null;
  readonly rcx: bigint | null;
}

type Handler = (request: Request) => Turn;
type Register = 'rax' | 'rbx' | 'rcx' | 'rdx';

/** Writes to the GHCB, which is mapped anew: between request and answer userspace may have run. */
const withGhcb = ({ vcpu, ghcb }: Pick<Request, 'vcpu' | 'ghcb'>, write: (page: Uint8Array) => void): Turn => {
  const page = mapGuestPage(vcpu, ghcb);
  if (page !== null) write(page);
  return 'again';
};

const reject = (request: Pick<Request, 'vcpu' | 'ghcb'>, reason: bigint): Turn =>
  withGhcb(request, (page) => {
    setGhcbField(page, GHCB.swExitInfo1, MALFORMED_INPUT);
    setGhcbField(page, GHCB.swExitInfo2, reason);
  });

/** Answers with values of exit_info_2. */
const succeed = (request: Request, info2: bigint): Turn =>
  withGhcb(request, (page) => {
    setGhcbField(page, GHCB.swExitInfo1, 0n);
    setGhcbField(page, GHCB.swExitInfo2, info2);
  });

/** `sev_es_sync_to_ghcb`: results in registers. */
const answerRegisters = (request: Request, values: Partial<Record<Register, bigint>>): Turn =>
  withGhcb(request, (page) => {
    for (const name of ['rax', 'rbx', 'rcx', 'rdx'] as const) {
      const value = values[name];
      if (value !== undefined) setGhcbField(page, GHCB[name], value);
    }
  });

/** `setup_vmgexit_scratch`: where the data lies; part of the GHCB itself, or shared memory of at most 16 KiB. */
const scratchArea = ({ scratch, ghcb }: Request, length: number): Gpa | null => {
  const start = scratch === null || scratch === 0n ? null : guestAddress(scratch);
  if (start === null) return null;
  const end = start + length;
  const inGhcb = start >= ghcb && start < ghcb + PAGE_SIZE;
  const buffer = ghcb + GHCB.sharedBuffer.offset;
  if (inGhcb) return start >= buffer && end <= buffer + GHCB.sharedBuffer.size ? start : null;
  return length <= SCRATCH_LIMIT ? start : null;
};

const mmioReadExit: Handler = (request) => {
  const address = guestAddress(request.info1);
  const length = Number(request.info2);
  const area = scratchArea(request, length);
  if (address === null || area === null) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  return mmioRead(request.vcpu, address, length, (data) => {
    writeGuest(request.vcpu, area, data);
    return 'again';
  });
};

const mmioWriteExit: Handler = (request) => {
  const address = guestAddress(request.info1);
  const length = Number(request.info2);
  const area = scratchArea(request, length);
  const data = area === null ? null : readGuest(request.vcpu, area, length);
  if (address === null || data === null) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  return mmioWrite(request.vcpu, address, data);
};

const operandSize = (info1: bigint): 1 | 2 | 4 | null => {
  const size = Number((info1 >> IOIO.SIZE_SHIFT) & IOIO.SIZE_MASK);
  return size === 1 || size === 2 || size === 4 ? size : null;
};

const ioExit: Handler = (request) => {
  const { vcpu, info1, info2, rax } = request;
  const size = operandSize(info1);
  if (size === null) return reject(request, GHCB_ERR.INVALID_INPUT);
  const port = Number((info1 >> IOIO.PORT_SHIFT) & 0xffffn);
  const isIn = (info1 & IOIO.IN) !== 0n;
  if ((info1 & IOIO.STRING) !== 0n) return stringIo(request, { port, size, count: Number(info2) }, isIn);
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

/** `sev_es_string_io`. */
const stringIo = (request: Request, access: { port: number; size: 1 | 2 | 4; count: number }, isIn: boolean): Turn => {
  const { vcpu } = request;
  const length = access.size * access.count;
  if (access.count === 0 || length > SCRATCH_LIMIT)
    return new Failure('EINVAL', 'STRING_IO_COUNT', 'sev_es_string_io', { given: String(access.count) });
  const area = scratchArea(request, length);
  if (area === null) return reject(request, GHCB_ERR.INVALID_SCRATCH_AREA);
  if (isIn)
    return portIn(vcpu, access, (data) => {
      writeGuest(vcpu, area, data);
      return 'again';
    });
  const data = readGuest(vcpu, area, length);
  return data === null ? reject(request, GHCB_ERR.INVALID_SCRATCH_AREA) : portOut(vcpu, access, data);
};

const cpuidExit: Handler = (request) => {
  const { vcpu, rax, rcx } = request;
  if (rax === null || rcx === null) return reject(request, GHCB_ERR.MISSING_INPUT);
  const { eax, ebx, ecx, edx } = vcpu.arch.cpuid.query(Number(rax & 0xffff_ffffn), Number(rcx & 0xffff_ffffn));
  const [a, b, c, d] = [eax, ebx, ecx, edx].map((value) => BigInt(value >>> 0));
  return answerRegisters(request, { rax: a, rbx: b, rcx: c, rdx: d });
};

/** exit_info_1: 0 sets the table's address, 1 asks for it. */
const apJumpTableExit: Handler = (request) => {
  const sev = toSevInfo(request.vcpu.vm);
  if (request.info1 === 0n) {
    sev.apJumpTable = request.info2;
    return succeed(request, 0n);
  }
  return request.info1 === 1n ? succeed(request, sev.apJumpTable) : reject(request, GHCB_ERR.INVALID_INPUT);
};

const turnOf = (exit: VendorExit): Turn => {
  if (exit.kind === 'failed') return exit.failure;
  return exit.kind === 'handled' ? 'again' : 'to-user';
};

const HANDLERS: ReadonlyMap<bigint, Handler> = new Map<bigint, Handler>([
  [GHCB_EXIT.MMIO_READ, mmioReadExit],
  [GHCB_EXIT.MMIO_WRITE, mmioWriteExit],
  [GHCB_EXIT.NMI_COMPLETE, () => 'again'],
  [GHCB_EXIT.AP_HLT_LOOP, ({ vcpu }) => turnOf(holdForSipi(vcpu, 'nae-event'))],
  [GHCB_EXIT.AP_JUMP_TABLE, apJumpTableExit],
  [GHCB_EXIT.HV_FEATURES, (request) => succeed(request, 0n)],
  [GHCB_EXIT.TERMINATION, ({ vcpu, ghcb }) => turnOf(terminate(vcpu, BigInt(ghcb)))],
  [BigInt(SvmExitCode.IOIO), ioExit],
  [BigInt(SvmExitCode.CPUID), cpuidExit],
  [BigInt(SvmExitCode.WBINVD), () => 'again'],
  [BigInt(SvmExitCode.INVD), () => 'again'],
]);

/** `svm_handle_invalid_exit`: an exit that the guest has made up, or that this host does not handle. */
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
const takeRequest = (vcpu: Vcpu, ghcb: Gpa, page: Uint8Array): Request => {
  const valid = (field: typeof GHCB.rax): bigint | null => (isGhcbFieldValid(page, field) ? field.get(page) : null);
  const request: Request = {
    vcpu,
    ghcb,
    code: GHCB.swExitCode.get(page),
    info1: GHCB.swExitInfo1.get(page),
    info2: GHCB.swExitInfo2.get(page),
    scratch: valid(GHCB.swScratch),
    rax: valid(GHCB.rax),
    rcx: valid(GHCB.rcx),
  };
  clearGhcbFields(page);
  return request;
};

/**
 * `sev_handle_vmgexit`: an encrypted guest asks the host for something. A GHCB that cannot be mapped, or none, resumes the
 * guest, which sees that nothing was done.
 */
export const handleVmgexit = (vcpu: Vcpu): Turn => {
  const { ghcb } = toSvm(vcpu).vmcb;
  if (ghcb === null || ghcb === 0n) return 'again';
  if (ghcbMsrCode(ghcb) !== 0) return turnOf(handleMsrProtocol(vcpu, ghcb));
  const address = guestAddress(ghcb);
  const page = address === null ? null : mapGuestPage(vcpu, address);
  if (address === null || page === null) return 'again';
  const reason = malformed(page);
  const request = takeRequest(vcpu, address, page);
  if (reason !== null) return reject(request, reason);
  setGhcbField(page, GHCB.swExitInfo1, 0n);
  setGhcbField(page, GHCB.swExitInfo2, 0n);
  const handler = HANDLERS.get(request.code);
  return handler === undefined ? unhandled(vcpu, request.code) : handler(request);
};
