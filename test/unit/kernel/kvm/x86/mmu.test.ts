import { describe, expect, it } from 'vitest';
import { createCostLedger } from '../../../../../server/hardware/costs.js';
import { Dram } from '../../../../../server/hardware/dram.js';
import { gfn, gpa, uva } from '../../../../../server/hardware/units.js';
import { KmemOwner } from '../../../../../server/kernel/kmem.js';
import { Memslot } from '../../../../../server/kernel/kvm/memslots.js';
import { NestedPageTable } from '../../../../../server/kernel/kvm/x86/nested-page-table.js';
import { KVM_CAP } from '../../../../../server/kernel/uapi/capabilities.js';
import { KVM_EXIT, KVM_MEM, KVM_X86_QUIRK } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_dirty_log,
  kvm_pre_fault_memory,
  kvm_userspace_memory_region,
} from '../../../../../server/kernel/uapi/kvm-structs.js';
import { CODE, Guest, pages } from './guest.js';

const TABLE_PAGE = 4096;

const tableWithFrames = () => {
  const kmem = new KmemOwner('vm 1');
  const costs = createCostLedger();
  const table = new NestedPageTable(kmem, costs.charge);
  const dram = new Dram(0, 64);
  const slot = new Memslot({ id: 0, baseGfn: gfn(0), npages: 1 << 20, userspaceAddr: uva(0), flags: 0 }, kmem);
  const map = (at: number) => {
    const frame = dram.allocate();
    if (frame === null) throw new Error('no frame');
    table.set(gfn(at), { kind: 'mapped', frame, slot, writable: true });
    return frame;
  };
  const tablePages = (): number => (kmem.reachableByType.get('mmu_page_table') ?? 0) / TABLE_PAGE;
  return { kmem, costs, table, map, tablePages };
};

describe('a nested page table', () => {
  it('allocates a page for each level that an entry needs, and no more', () => {
    const { map, tablePages } = tableWithFrames();
    map(0);
    expect(tablePages()).toBe(4);
    map(511);
    expect(tablePages()).toBe(4);
    map(512);
    expect(tablePages()).toBe(5);
    map(512 * 512);
    expect(tablePages()).toBe(7);
    map(512 ** 3);
    expect(tablePages()).toBe(10);
  });

  it('keeps its pages when leaves are zapped, and gives all back when everything is', () => {
    const { kmem, costs, map, table, tablePages } = tableWithFrames();
    for (const at of [1, 2, 3, 600]) map(at);
    expect(table.zapLeaves(gfn(2), gfn(601))).toBe(3);
    expect(tablePages()).toBe(5);
    expect(table.find(gfn(1))?.kind).toBe('mapped');
    expect(table.find(gfn(3))).toBeUndefined();
    expect(table.zapAll()).toBe(1);
    expect(tablePages()).toBe(0);
    expect(kmem.reachableByType.get('kvm_mmu_page_header')).toBeUndefined();
    expect(Object.fromEntries(costs.counts)).toMatchObject({ pte_zapped: 4, page_table_freed: 5, page_allocated: 5 });
  });

  it('has no entry for what its four levels cannot tell from a low address', () => {
    const { map, table } = tableWithFrames();
    map(3);
    expect(table.find(gfn(512 ** 4 + 3))).toBeUndefined();
  });

  it('knows which frames it maps, however often', () => {
    const { map, table } = tableWithFrames();
    const frame = map(7);
    const slot = table.find(gfn(7));
    if (slot?.kind !== 'mapped') throw new Error('not mapped');
    table.set(gfn(9), slot);
    table.zapLeaves(gfn(7), gfn(8));
    expect(table.maps(frame)).toBe(true);
    table.zapLeaves(gfn(9), gfn(10));
    expect(table.maps(frame)).toBe(false);
  });
});

/** mov byte ptr [0x3000],1; mov byte ptr [0x5000],1; hlt */
const STORES = 'c606003001 c606005001 f4';

const dirtyPages = (guest: Guest): number[] => {
  const bitmap = guest.map(pages(1));
  guest.must(guest.vmFd, IOCTL.KVM_GET_DIRTY_LOG, kvm_dirty_log.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) }));
  const bytes = guest.mm.read(bitmap, 8);
  if (!(bytes instanceof Uint8Array)) throw new Error('no bitmap');
  return Array.from({ length: 64 }, (_, page) => page).filter((page) => ((bytes[page >>> 3] ?? 0) >>> (page & 7)) & 1);
};

const setFlags = (guest: Guest, flags: number): void => guest.addSlot(0, pages(16), { flags });

describe('the MMU of a VM', () => {
  it('maps what the guest touches, and only that', () => {
    const guest = new Guest().program(STORES);
    expect(guest.kmem('mmu_page_table')).toBe(0);
    guest.run();
    expect(guest.vm.arch.mmu.mappings().map(({ gfn: at, writable }) => [Number(at), writable])).toEqual([
      [1, false],
      [3, true],
      [5, true],
    ]);
    expect(guest.kmem('mmu_page_table')).toBe(pages(4));
  });

  it('forgets a page before the process gives it up, and finds the new one', () => {
    const guest = new Guest().program('a00030 f4 a00030 f4');
    guest.write(0x3000, '11');
    guest.run();
    guest.mm.dontNeed(guest.memory + 0x3000, pages(1));
    expect(guest.vm.arch.mmu.mappings().map(({ gfn: at }) => Number(at))).toEqual([1]);
    guest.write(0x3000, '22');
    guest.run();
    expect(guest.regs.rax & 0xffn).toBe(0x22n);
  });

  it('writes what the process shares with nobody after a fork', () => {
    const guest = new Guest().program(STORES);
    guest.run();
    const child = guest.kernel.fork(guest.process.process);
    if (!('mm' in child)) throw new Error('no child');
    guest.setRegs({ rip: BigInt(CODE) });
    guest.write(0x3000, '99');
    guest.run();
    expect(guest.read(0x3000, 1)).toBe('01');
    const seen = child.mm?.read(guest.memory + 0x3000, 1);
    expect(seen).toEqual(Uint8Array.of(1));
  });

  it('loses everything when a slot of a default VM is deleted, unless that quirk is off', () => {
    const deletion = kvm_userspace_memory_region.encode({ slot: 1 });
    for (const [disabled, left] of [
      [0n, []],
      [BigInt(KVM_X86_QUIRK.SLOT_ZAP_ALL), [1, 3, 5]],
    ] as const) {
      const guest = new Guest().program(STORES);
      guest.addSlot(0x10000, pages(1), { slot: 1 });
      expect(guest.enableCap(KVM_CAP.DISABLE_QUIRKS2, disabled)).toBe(0);
      guest.run();
      guest.must(guest.vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, deletion);
      expect(guest.vm.arch.mmu.mappings().map(({ gfn: at }) => Number(at))).toEqual(left);
    }
  });

  it('gives an MMIO exit for a page whose slot is taken away, and RAM again when it comes back', () => {
    const guest = new Guest().program('b80010 8ed8 a00000 f4');
    guest.addSlot(0x10000, pages(1), { slot: 1 });
    guest.must(guest.vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode({ slot: 1 }));
    expect(guest.run().reason).toBe(KVM_EXIT.MMIO);
    guest.answerMmio('00');
    guest.run();
    guest.write(0x10000, '33');
    guest.addSlot(0x10000, pages(1), { slot: 1 });
    guest.setRegs({ rip: BigInt(CODE) });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rax & 0xffn).toBe(0x33n);
  });

  it('shows that two VMs map one frame', () => {
    const guest = new Guest().program(STORES);
    const other = guest.process.createVm();
    const region = {
      slot: 0,
      flags: 0,
      guest_phys_addr: 0n,
      memory_size: BigInt(pages(16)),
      userspace_addr: BigInt(guest.memory),
    };
    guest.must(other.fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region));
    const { vcpu } = guest.process.createVcpu(other.fd);
    guest.run();
    const page = guest.mm.fault(guest.memory + 0x3000, false);
    if (!('frame' in page)) throw new Error('no page');
    expect(other.vm.arch.mmu.maps(page.frame)).toBe(false);
    expect(other.vm.arch.mmu.map(vcpu, gpa(0x3000), 'read', false)).toMatchObject({ frame: page.frame });
    expect([guest.vm, other.vm].map(({ arch }) => arch.mmu.maps(page.frame))).toEqual([true, true]);
  });

  it('pre-faults pages, and says how far it got', () => {
    const guest = new Guest();
    const done = guest.get(IOCTL.KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory, { gpa: 0xe000n, size: 0x4000n });
    expect(done).toMatchObject({ gpa: 0x10000n, size: 0x2000n });
    expect(guest.vm.arch.mmu.mappings()).toHaveLength(2);
    expect(guest.try(IOCTL.KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory.encode({ gpa: 0x10000n, size: 0x1000n }))).toBe('ENOENT');
    expect(guest.try(IOCTL.KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory.encode({ gpa: 0x800n, size: 0x1000n }))).toBe('EINVAL');
  });

  it('holds nothing once the VM is gone', () => {
    const guest = new Guest().program(STORES);
    guest.run();
    guest.process.closeAll();
    guest.mm.exit();
    expect(guest.vm.kmem.chargedBytes).toBe(0);
  });
});

describe('write tracking for the dirty log', () => {
  it('sees each page that the guest writes once for each look', () => {
    const guest = new Guest().program(STORES);
    setFlags(guest, KVM_MEM.LOG_DIRTY_PAGES);
    guest.run();
    expect(dirtyPages(guest)).toEqual([3, 5]);
    expect(dirtyPages(guest)).toEqual([]);
    guest.setRegs({ rip: BigInt(CODE) });
    guest.run();
    expect(dirtyPages(guest)).toEqual([3, 5]);
  });

  it('sees writes to pages that were writable before the log was switched on', () => {
    const guest = new Guest().program(STORES);
    guest.run();
    setFlags(guest, KVM_MEM.LOG_DIRTY_PAGES);
    guest.setRegs({ rip: BigInt(CODE) });
    guest.run();
    expect(dirtyPages(guest)).toEqual([3, 5]);
  });

  it('sees the store of an INS only when it is made', () => {
    // mov di,0x3000; mov cx,2; mov dx,0x3f8; cld; rep insb; hlt
    const guest = new Guest().program('bf0030 b90200 baf803 fc f36c f4');
    setFlags(guest, KVM_MEM.LOG_DIRTY_PAGES);
    guest.run();
    expect(guest.io).toMatchObject({ count: 2, direction: 0 });
    expect(dirtyPages(guest)).toEqual([]);
    guest.vcpu.runPages.pio.bytes.set([7, 8]);
    guest.run();
    expect(dirtyPages(guest)).toEqual([3]);
    expect(guest.read(0x3000, 2)).toBe('0708');
  });
});
