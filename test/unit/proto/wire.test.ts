import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  FallocateRequest,
  FileServiceReadRequest,
  IoctlRequest,
  KvmEnableCap,
  type KvmEnableCapInit,
  KvmRegs,
  KvmRun,
} from '../../../gen/messages.js';
import { KvmVm } from '../../../gen/services.js';
import { loadContract } from '../../../tools/codegen/contract.js';

const UINT64_MAX = 2n ** 64n - 1n;
const INT64_MIN = -(2n ** 63n);

describe('64-bit integers of the codec', () => {
  test('every uint64 comes back as the BigInt it was', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: UINT64_MAX }), (rip) => {
        expect(KvmRegs.decode(KvmRegs.encode({ rip }).finish()).rip).toBe(rip);
      }),
      {
        examples: [[0n], [127n], [128n], [2n ** 28n - 1n], [2n ** 28n], [2n ** 56n - 1n], [2n ** 56n], [2n ** 63n], [UINT64_MAX]],
      },
    );
  });

  test('every int64 comes back as the BigInt it was', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: INT64_MIN, max: 2n ** 63n - 1n }), (offset) => {
        expect(FallocateRequest.decode(FallocateRequest.encode({ offset }).finish()).offset).toBe(offset);
      }),
      { examples: [[-1n], [INT64_MIN], [0n]] },
    );
  });

  test('a safe integer may be given as a number', () => {
    expect(KvmRegs.decode(KvmRegs.encode({ rip: 0xfff0 }).finish()).rip).toBe(0xfff0n);
    expect(FileServiceReadRequest.decode(FileServiceReadRequest.encode({ offset: -1 }).finish()).offset).toBe(-1n);
  });

  test.each([-1n, 2n ** 64n, -1, 2 ** 53, 1.5, Number.NaN])('%s is no uint64', (rip) => {
    expect(() => KvmRegs.encode({ rip })).toThrow(RangeError);
  });

  test('what is not given is zero, and what is optional and not given is null', () => {
    expect(KvmRegs.decode(new Uint8Array(0)).rip).toBe(0n);
    expect(FallocateRequest.decode(new Uint8Array(0)).offset).toBeNull();
  });

  test('repeated ones are packed', () => {
    const args = [0n, 1n, UINT64_MAX];
    expect(KvmEnableCap.encode({ args: [1n, 2n] }).finish()).toEqual(Buffer.from([0x1a, 2, 1, 2]));
    expect(KvmEnableCap.decode(KvmEnableCap.encode({ args }).finish()).args).toEqual(args);
  });
});

describe('a request', () => {
  const { enableCap } = KvmVm;
  const refusal = (fd: number, enable_cap: KvmEnableCapInit): string => {
    try {
      enableCap.requestSerialize({ fd, enable_cap });
    } catch (error) {
      return error instanceof RangeError ? error.message : `no RangeError: ${error}`;
    }
    return 'none';
  };

  test.each([-(2 ** 31), -1, 0, 1 << 31, 2 ** 31, 2 ** 32 - 1])('may have %s in 32 bits, which C would take, too', (number) => {
    const read = enableCap.requestDeserialize(enableCap.requestSerialize({ fd: number, enable_cap: { flags: number } }));
    expect(read).toMatchObject({ fd: number | 0, enable_cap: { flags: number >>> 0 } });
  });

  test.each([-(2 ** 31) - 1, 2 ** 32, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('may not have %s there', (number) => {
    const allowed = `${number} is not in -2147483648 to 4294967295`;
    expect(refusal(3, { cap: 1, flags: number })).toBe(`enable_cap.flags: ${allowed}`);
    expect(refusal(number, { cap: 1, flags: 0 })).toBe(`fd: ${allowed}`);
  });

  test('is refused with the name of the field, wherever that is, for 64 bits too', () => {
    expect(refusal(3, { args: [1n, -1n] })).toBe('enable_cap.args[1]: -1 is not in 0 to 18446744073709551615');
    expect(refusal(3, { args: [1, 2 ** 53] })).toBe('enable_cap.args[1]: 9007199254740992 is no safe integer');
  });
});

describe('the codec', () => {
  test('gives bytes as a plain Uint8Array', () => {
    const data = new Uint8Array([1, 2, 3]);
    expect(IoctlRequest.decode(IoctlRequest.encode({ fd: -1, data }).finish())).toMatchObject({ fd: -1, data, arg: 'data' });
    expect(IoctlRequest.decode(new Uint8Array(0)).arg).toBeUndefined();
  });

  test.each([
    ['a varint that does not end', [0x08, 0x80]],
    ['a varint of more than ten bytes', [0x10, ...Array<number>(11).fill(0x80)]],
    ['bytes beyond the end', [0x2a, 0x05, 0x00]],
    ['a length beyond the end', [0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f]],
  ])('refuses %s', (_what, bytes) => {
    expect(() => IoctlRequest.decode(new Uint8Array(bytes))).toThrow(Error);
  });

  test('skips fields that it does not know', () => {
    expect(KvmRun.decode(new Uint8Array([0x08, 0x02, 0xf8, 0x07, 0x01])).exit_reason).toBe(2);
  });

  test('speaks the wire format of the contract: an independent codec reads the same', () => {
    const type = loadContract().messages.find((message) => message.name === 'KvmRun');
    const mmio = { phys_addr: 0xfee0_0000, data: new Uint8Array(8).fill(7), len: 4, is_write: 1 };
    const bytes = KvmRun.encode({ exit_reason: 6, cr8: UINT64_MAX, mmio }).finish();
    const read = type?.toObject(type.decode(bytes), { longs: String, bytes: Array, enums: String });
    expect(read).toEqual({
      exit_reason: 'KVM_EXIT_MMIO',
      cr8: UINT64_MAX.toString(),
      mmio: { ...mmio, phys_addr: String(mmio.phys_addr), data: Array(8).fill(7) },
    });
  });
});
