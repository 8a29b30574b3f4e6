import { Register } from 'iced-x86';
import { descriptorTables, tableLimits } from './descriptors.js';
import { driverSegments } from './driver.js';
import { type GuestImage, pagesOf } from './image.js';
import { GPA, LAPIC, NVME, SELECTOR } from './layout.js';
import { pageTables } from './page-tables.js';
import { VC_VECTOR, vcHandler } from './vc-handler.js';

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
/** PE, ET, PG; PAE; LME and LMA. */
const CR0 = 0x8000_0011n;
const CR4 = 0x20n;
const EFER = 0x500n;

/**
 * The driver in 64-bit mode, where page tables say by the C-bit which pages are private: all but the GHCBs and the devices.
 * R15 has the vCPU's GHCB.
 */
export const sevEsGuest = (): GuestImage => {
  const shared = [GPA.GHCB, GPA.AP_GHCB];
  const segments = [
    ...descriptorTables(64, [{ vector: VC_VECTOR, address: GPA.VC_HANDLER }]),
    ...driverSegments(64, (a, vcpu) => a.movImm(Register.R15D, vcpu === 0 ? GPA.GHCB : GPA.AP_GHCB)),
    { gpa: GPA.VC_HANDLER, bytes: vcHandler().encode(GPA.VC_HANDLER) },
    ...pageTables({ lowBytes: GPA.END, shared, devices: [NVME.BAR0, LAPIC.BASE] }),
  ];
  return {
    name: 'built-in driver, 64-bit with #VC handler',
    segments: pagesOf(segments, 0, GPA.END, shared),
    firmware: null,
    start: (vcpu, reset) => {
      const data = { ...FLAT, selector: SELECTOR.DATA, type: 3, db: 1, l: 0 };
      return {
        sregs: {
          ...reset,
          ...tableLimits(64),
          ...{
            cs: { ...FLAT, selector: SELECTOR.CODE, type: 11, db: 0, l: 1 },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
          },
          ...{ cr0: CR0, cr3: BigInt(GPA.PML4), cr4: CR4, efer: EFER },
        },
        regs: {
          rip: BigInt(vcpu === 0 ? GPA.ENTRY : GPA.AP_ENTRY),
          rsp: BigInt(vcpu === 0 ? GPA.STACK : GPA.AP_STACK),
          rflags: 2n,
        },
      };
    },
    runs: true,
  };
};
