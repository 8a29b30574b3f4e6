import { DBG } from '../../../hardware/amd/command-buffers.js';
import { BLOCK_SIZE } from '../../../hardware/amd/memory-encryption.js';
import { PAGE_SIZE } from '../../../hardware/units.js';
import { Failure, failed } from '../../failure.js';
import type { Page } from '../../mm/page.js';
import { kvm_sev_dbg } from '../../uapi/sev-structs.js';
import { copyParams, issue, requireSevGuest, type SevCall, type SevHandler } from './sev-command.js';
import { clflushPages, pinMemory, unpinMemory } from './sev-memory.js';

const KERNEL_REF = 'sev_dbg_crypt';
const PAGE_SIZE_BIG = BigInt(PAGE_SIZE);

/** One step of the copy: it crosses a page neither at the source nor at the destination. */
interface Piece {
  readonly source: Page;
  readonly sourceOffset: number;
  readonly destination: Page;
  readonly destinationOffset: number;
  readonly length: number;
}

const roundDown = (value: number): number => value - (value % BLOCK_SIZE);
const roundUp = (value: number): number => roundDown(value + BLOCK_SIZE - 1);

const dbg = (call: SevCall, name: 'DBG_DECRYPT' | 'DBG_ENCRYPT', from: number, to: number, length: number): Failure | null => {
  const buffer = new Uint8Array(DBG.size);
  DBG.handle.set(buffer, call.sev.handle);
  DBG.srcPaddr.set(buffer, from);
  DBG.dstPaddr.set(buffer, to);
  DBG.length.set(buffer, length);
  return issue(call, name, buffer, `__sev_dbg_${name === 'DBG_DECRYPT' ? 'decrypt' : 'encrypt'}`);
};

/** The firmware works on whole blocks of 16 bytes: they are decrypted into the kernel's own memory, and the part copied. */
const decryptPiece = (call: SevCall, { source, sourceOffset, destination, destinationOffset, length }: Piece): Failure | null => {
  const { buffers } = call.module.psp;
  const start = roundDown(sourceOffset);
  const blocks = roundUp(sourceOffset + length) - start;
  const bounce = buffers.blob(0);
  const refused = dbg(call, 'DBG_DECRYPT', source.frame.hpa + start, bounce, blocks);
  if (refused !== null) return refused;
  const plain = buffers.read(bounce, blocks).subarray(sourceOffset - start, sourceOffset - start + length);
  destination.frame.viewForWrite(null).set(plain, destinationOffset);
  return null;
};

/** Blocks that are not covered as a whole are decrypted first, changed, and encrypted again. */
const encryptPiece = (call: SevCall, { source, sourceOffset, destination, destinationOffset, length }: Piece): Failure | null => {
  const { buffers } = call.module.psp;
  const start = roundDown(destinationOffset);
  const blocks = roundUp(destinationOffset + length) - start;
  const bounce = buffers.blob(0);
  if (blocks !== length) {
    const refused = dbg(call, 'DBG_DECRYPT', destination.frame.hpa + start, bounce, blocks);
    if (refused !== null) return refused;
  }
  const plain = buffers.read(bounce, blocks);
  plain.set(source.frame.view(null).subarray(sourceOffset, sourceOffset + length), destinationOffset - start);
  buffers.write(bounce, plain);
  return dbg(call, 'DBG_ENCRYPT', bounce, destination.frame.hpa + start, blocks);
};

/** KVM_SEV_DBG_DECRYPT and KVM_SEV_DBG_ENCRYPT (`sev_dbg_crypt`): page by page, each pinned for its step alone. */
const crypt =
  (step: typeof decryptPiece): SevHandler =>
  (call) => {
    const refused = requireSevGuest(call, KERNEL_REF);
    if (refused !== null) return refused;
    const params = copyParams(call, kvm_sev_dbg);
    if (failed(params)) return params;
    const { src_uaddr: source, dst_uaddr: destination, len } = params;
    const wraps = (address: bigint): boolean => BigInt.asUintN(64, address + BigInt(len)) < address;
    if (len === 0 || wraps(source) || wraps(destination) || destination === 0n)
      return new Failure('EINVAL', 'DBG_RANGE', KERNEL_REF, { field: 'len', given: String(len) });
    for (let done = 0; done < len; ) {
      const from = source + BigInt(done);
      const to = destination + BigInt(done);
      const length = Math.min(len - done, PAGE_SIZE - Number(from % PAGE_SIZE_BIG), PAGE_SIZE - Number(to % PAGE_SIZE_BIG));
      const failure = cryptStep(call, step, from, to, length);
      if (failure !== null) return failure;
      done += length;
    }
    return null;
  };

const cryptStep = (call: SevCall, step: typeof decryptPiece, from: bigint, to: bigint, length: number): Failure | null => {
  const { module, vm } = call;
  const source = pinMemory(module, vm, from, BigInt(length), false);
  if (failed(source)) return source;
  const destination = pinMemory(module, vm, to, BigInt(length), true);
  if (failed(destination)) {
    unpinMemory(module, vm, source.pages);
    return destination;
  }
  clflushPages(module, [...source.pages, ...destination.pages]);
  const [sourcePage] = source.pages;
  const [destinationPage] = destination.pages;
  if (sourcePage === undefined || destinationPage === undefined) throw new Error('a step of DBG_* pinned no page');
  const failure = step(call, {
    source: sourcePage,
    sourceOffset: source.offset,
    destination: destinationPage,
    destinationOffset: destination.offset,
    length,
  });
  unpinMemory(module, vm, source.pages);
  unpinMemory(module, vm, destination.pages);
  return failure;
};

export const dbgDecrypt: SevHandler = crypt(decryptPiece);
export const dbgEncrypt: SevHandler = crypt(encryptPiece);
