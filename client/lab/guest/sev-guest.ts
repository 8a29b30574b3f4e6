import { descriptorTables, tableLimits } from './descriptors.js';
import { driverSegments } from './driver.js';
import { type GuestImage, pagesOf } from './image.js';
import { GPA, SELECTOR } from './layout.js';

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, l: 0, db: 1, g: 1, avl: 0, unusable: 0 };
const CR0_PE = 1n;

/** The driver in flat 32-bit protected mode: without paging every access of an SEV guest to its memory is private. */
export const sevGuest = (): GuestImage => ({
  name: 'built-in driver, 32-bit',
  segments: pagesOf([...descriptorTables(32), ...driverSegments(32)], 0, GPA.GHCB, []),
  firmware: null,
  start: (vcpu, reset) => {
    const code = { ...FLAT, selector: SELECTOR.CODE, type: 11 };
    const data = { ...FLAT, selector: SELECTOR.DATA, type: 3 };
    return {
      sregs: {
        ...reset,
        ...tableLimits(32),
        ...{ cs: code, ds: data, es: data, fs: data, gs: data, ss: data, cr0: reset.cr0 | CR0_PE },
      },
      regs: {
        rip: BigInt(vcpu === 0 ? GPA.ENTRY : GPA.AP_ENTRY),
        rsp: BigInt(vcpu === 0 ? GPA.STACK : GPA.AP_STACK),
        rflags: 2n,
      },
    };
  },
  runs: true,
});
