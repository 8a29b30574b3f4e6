import { KVM_DIRTY_GFN_F, KVM_PAGE_OFFSET } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import {
  kvm_clear_dirty_log,
  kvm_coalesced_mmio,
  kvm_coalesced_mmio_ring,
  kvm_coalesced_mmio_zone,
  kvm_create_device,
  kvm_create_guest_memfd,
  kvm_device_attr,
  kvm_dirty_gfn,
  kvm_dirty_log,
  kvm_enable_cap,
  kvm_enc_region,
  kvm_ioeventfd,
  kvm_irqfd,
  kvm_memory_attributes,
  kvm_stats_header,
  kvm_userspace_memory_region,
  kvm_userspace_memory_region2,
} from '../../../server/kernel/uapi/kvm-structs.js';
import { MAP } from '../../../server/kernel/uapi/mman.js';
import { kvm_sev_cmd } from '../../../server/kernel/uapi/sev-structs.js';
import { kvm_clock_data, kvm_msr_filter, kvm_msr_filter_range } from '../../../server/kernel/uapi/x86-structs.js';
import type { Json } from '../json.js';
import { type OpArgs, toHex, toU64 } from '../op-args.js';
import { finish, hex, type Operation } from '../operation.js';
import { failedWith } from '../system-calls.js';
import { ioctlIn, ioctlInOut, repeated, valueOp } from './ioctl.js';

const PAGE = 4096;
const RW = 3;
/** Bitmaps of KVM_CLEAR_DIRTY_LOG are no longer than this. */
const CLEAR_BITMAP_MAX = 1 << 20;

const createVcpu: Operation = async (executor, args) => {
  const { calls, vcpuMmapSize } = executor;
  const answer = await executor.finishFd(await calls.ioctl(args.fd, IOCTL.KVM_CREATE_VCPU, args.u64('id')), args);
  const handle = executor.handles.find(args.text('as', '_unnamed'));
  if (answer.errno !== null || handle === undefined || args.truthy('no_mmap')) return answer;
  const length = BigInt(vcpuMmapSize);
  const mapped = await calls.mmap({ length, prot: RW, flags: MAP.SHARED, fd: handle.fd, offset: 0n });
  if (mapped.errno === null) handle.run = { address: mapped.ret, length: vcpuMmapSize };
  else delete handle.run;
  return answer;
};

/** The descriptors stay open, unnamed. */
const createVcpus: Operation = ({ calls }, args) =>
  repeated(args, 'created', (index) => calls.ioctl(args.fd, IOCTL.KVM_CREATE_VCPU, args.u64('from') + BigInt(index)));

const setUserMemoryRegion: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_USER_MEMORY_REGION,
    kvm_userspace_memory_region.encode({
      slot: args.u32('slot'),
      flags: args.u32('flags'),
      guest_phys_addr: args.u64('gpa'),
      memory_size: args.u64('size'),
      userspace_addr: args.backing,
    }),
  );

const setUserMemoryRegion2: Operation = (executor, args) => {
  const bytes = kvm_userspace_memory_region2.encode({
    slot: args.u32('slot'),
    flags: args.u32('flags'),
    guest_phys_addr: args.u64('gpa'),
    memory_size: args.u64('size'),
    userspace_addr: args.backing,
    guest_memfd_offset: args.u64('gmem_offset'),
    guest_memfd: args.descriptor('gmem', 0) >>> 0,
  });
  const view = new DataView(bytes.buffer);
  view.setUint32(44, args.u32('pad1'), true);
  if (args.has('pad2')) view.setUint32(48 + (args.number('pad2') % 14) * 8, 1, true);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_USER_MEMORY_REGION2, bytes);
};

const memslotMany: Operation = ({ calls, arena }, args) =>
  repeated(args, 'done', async (index) => {
    arena.reset();
    const region = kvm_userspace_memory_region.encode({
      slot: (args.u32('slot') + index) >>> 0,
      flags: args.u32('flags'),
      guest_phys_addr: args.u64('gpa') + BigInt(index) * args.u64('step', PAGE),
      memory_size: args.u64('size', PAGE),
      userspace_addr: args.backing + BigInt(index) * args.u64('backing_step'),
    });
    return calls.ioctl(args.fd, IOCTL.KVM_SET_USER_MEMORY_REGION, await arena.place(region));
  });

const createGuestMemfd: Operation = async (executor, args) => {
  const bytes = kvm_create_guest_memfd.encode({ size: args.u64('size'), flags: args.u64('flags') });
  if (args.has('reserved')) bytes[16 + (args.number('reserved') % 6) * 8] = 1;
  const address = await executor.arena.place(bytes);
  return executor.finishFd(await executor.calls.ioctl(args.fd, IOCTL.KVM_CREATE_GUEST_MEMFD, address), args);
};

const setMemoryAttributes: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_MEMORY_ATTRIBUTES,
    kvm_memory_attributes.encode({
      address: args.u64('address'),
      size: args.u64('size'),
      attributes: args.u64('attributes'),
      flags: args.u64('flags'),
    }),
  );

const ioeventfdBytes = (args: OpArgs, address: bigint): Uint8Array =>
  kvm_ioeventfd.encode({
    datamatch: args.u64('datamatch'),
    addr: address,
    len: args.u32('len'),
    fd: args.descriptor('eventfd'),
    flags: args.u32('flags'),
  });

const ioeventfd: Operation = (executor, args) => {
  const bytes = ioeventfdBytes(args, args.u64('addr'));
  if (args.has('pad')) bytes[28 + (args.number('pad') % 36)] = 1;
  return ioctlIn(executor, args.descriptor('vm'), IOCTL.KVM_IOEVENTFD, bytes);
};

const ioeventfdMany: Operation = ({ calls, arena }, args) =>
  repeated(args, 'done', async (index) => {
    arena.reset();
    const address = args.u64('addr') + BigInt(index) * args.u64('step', 8);
    return calls.ioctl(args.descriptor('vm'), IOCTL.KVM_IOEVENTFD, await arena.place(ioeventfdBytes(args, address)));
  });

const irqfd: Operation = (executor, args) => {
  const bytes = kvm_irqfd.encode({
    fd: args.descriptor('eventfd') >>> 0,
    gsi: args.u32('gsi'),
    flags: args.u32('flags'),
    resamplefd: args.descriptor('resamplefd', 0) >>> 0,
  });
  if (args.has('pad')) bytes[16 + (args.number('pad') % 16)] = 1;
  return ioctlIn(executor, args.descriptor('vm'), IOCTL.KVM_IRQFD, bytes);
};

const enableCap: Operation = (executor, args) => {
  const bytes = kvm_enable_cap.encode({
    cap: args.u32('cap'),
    flags: args.u32('flags'),
    args: args
      .list('args')
      .slice(0, 4)
      .map((item) => toU64(item)),
  });
  if (args.has('pad')) bytes[40 + (args.number('pad') % 64)] = 1;
  return ioctlIn(executor, args.fd, IOCTL.KVM_ENABLE_CAP, bytes);
};

const getDirtyLog: Operation = async (executor, args) => {
  const bits = Math.ceil(args.number('npages', 64) / 64) * 64;
  const length = bits / 8 + 64;
  const bitmap = await executor.arena.place(new Uint8Array(length).fill(args.number('prefill')));
  const outcome = await executor.calls.ioctl(
    args.fd,
    IOCTL.KVM_GET_DIRTY_LOG,
    await executor.arena.place(
      kvm_dirty_log.encode({ slot: args.u32('slot'), dirty_bitmap: args.has('addr') ? args.address('addr') : bitmap }),
    ),
  );
  if (outcome.ret !== 0n) return finish(outcome);
  const map = await executor.arena.read(bitmap, length);
  const dirty = Array.from({ length: bits }, (_, bit) => bit).filter((bit) => (((map[bit >> 3] ?? 0) >> (bit & 7)) & 1) === 1);
  return { ...finish(outcome), dirty };
};

const clearDirtyLog: Operation = async (executor, args) => {
  const pages = args.u64('num_pages', 64);
  const wanted = Number(((pages + 63n) / 64n) * 8n + 64n);
  const map = new Uint8Array(Math.min(wanted, CLEAR_BITMAP_MAX));
  for (const item of args.list('pages')) {
    const page = Number(toU64(item));
    if (page >> 3 < map.length) map[page >> 3] = (map[page >> 3] ?? 0) | (1 << (page & 7));
  }
  if (args.has('fill')) map.fill(args.number('fill'));
  const bitmap = await executor.arena.place(map);
  return ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_CLEAR_DIRTY_LOG,
    kvm_clear_dirty_log.encode({
      slot: args.u32('slot'),
      num_pages: Number(BigInt.asUintN(32, pages)),
      first_page: args.u64('first_page'),
      dirty_bitmap: args.has('addr') ? args.address('addr') : bitmap,
    }),
  );
};

const dirtyRingMmap: Operation = async ({ calls, handles }, args) => {
  const handle = handles.find(args.text('vcpu'));
  if (handle === undefined) return finish(failedWith('EBADF'));
  const length = args.number('bytes', PAGE);
  const mapped = await calls.mmap({
    length: BigInt(length),
    prot: args.number('prot', RW),
    flags: args.truthy('private') ? MAP.PRIVATE : MAP.SHARED,
    fd: handle.fd,
    offset: args.u64('page_offset', KVM_PAGE_OFFSET.DIRTY_LOG) * BigInt(PAGE),
  });
  if (mapped.errno !== null) return finish(mapped);
  handle.ring = { address: mapped.ret, length, position: handle.ring?.position ?? 0 };
  return { ret: 0, errno: null };
};

/** Lists dirty entries from the current position, and marks them for reset unless `peek`. */
const dirtyRingCollect: Operation = async ({ calls, handles }, args) => {
  const ring = handles.find(args.text('vcpu'))?.ring;
  if (ring === undefined) return finish(failedWith('EBADF'));
  const count = ring.length / kvm_dirty_gfn.size;
  const gfns: Json[] = [];
  let { position } = ring;
  for (; gfns.length < count; position++) {
    const address = ring.address + BigInt((position % count) * kvm_dirty_gfn.size);
    const { data } = await calls.load(address, kvm_dirty_gfn.size);
    const entry = kvm_dirty_gfn.decode(data);
    if (entry.flags !== KVM_DIRTY_GFN_F.DIRTY) break;
    gfns.push({ slot: entry.slot, offset: Number(entry.offset) });
    if (args.truthy('peek')) continue;
    kvm_dirty_gfn.write(data, { flags: entry.flags | KVM_DIRTY_GFN_F.RESET });
    await calls.store(address, data.subarray(0, 4));
  }
  if (!args.truthy('peek')) ring.position = position;
  return { ret: 0, errno: null, gfns };
};

const zoneBytes = (args: OpArgs, address: bigint, size: number): Uint8Array =>
  kvm_coalesced_mmio_zone.encode({ addr: address, size, pio: args.u32('pio') });

const coalescedZone =
  (request: number): Operation =>
  (executor, args) =>
    ioctlIn(executor, args.fd, request, zoneBytes(args, args.u64('addr'), args.u32('size')));

const coalescedMany: Operation = ({ calls, arena }, args) =>
  repeated(args, 'done', async (index) => {
    arena.reset();
    const address = args.u64('addr') + BigInt(index) * args.u64('step', PAGE);
    return calls.ioctl(
      args.fd,
      IOCTL.KVM_REGISTER_COALESCED_MMIO,
      await arena.place(zoneBytes(args, address, args.u32('size', 8))),
    );
  });

/** Lists and consumes the ring of coalesced writes. */
const coalescedRead: Operation = async ({ calls, handles }, args) => {
  const run = handles.find(args.text('vcpu'))?.run;
  if (run === undefined) return finish(failedWith('EBADF'));
  const address = run.address + BigInt(KVM_PAGE_OFFSET.COALESCED_MMIO * PAGE);
  const { data } = await calls.load(address, PAGE);
  const ring = kvm_coalesced_mmio_ring.decode(data);
  const slots = Math.floor((PAGE - kvm_coalesced_mmio_ring.size) / kvm_coalesced_mmio.size);
  const entries: Json[] = [];
  let { first } = ring;
  for (; first !== ring.last && entries.length < 1000; first = (first + 1) % slots) {
    const entry = kvm_coalesced_mmio.decode(data, kvm_coalesced_mmio_ring.size + first * kvm_coalesced_mmio.size);
    const bytes = entry.data.subarray(0, Math.min(8, entry.len));
    entries.push({ phys_addr: hex(entry.phys_addr), len: entry.len, pio: entry.pio, data: toHex(bytes) });
  }
  await calls.store(address, kvm_coalesced_mmio_ring.encode({ first, last: ring.last }));
  return { ret: 0, errno: null, entries };
};

const setIdentityMapAddr: Operation = (executor, args) => {
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, args.u64('addr'), true);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_IDENTITY_MAP_ADDR, word);
};

const getClock: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_CLOCK, kvm_clock_data.encode({}));
  return outcome.ret === 0n ? { ...finish(outcome), flags: kvm_clock_data.decode(data).flags } : finish(outcome);
};

const setClock: Operation = (executor, args) =>
  ioctlIn(executor, args.fd, IOCTL.KVM_SET_CLOCK, kvm_clock_data.encode({ clock: args.u64('clock'), flags: args.u32('flags') }));

const memoryEncryptOp: Operation = async (executor, args) => {
  if (args.has('arg')) return finish(await executor.calls.ioctl(args.fd, IOCTL.KVM_MEMORY_ENCRYPT_OP, args.u64('arg')));
  const command = kvm_sev_cmd.encode({
    id: args.u32('id'),
    data: args.has('data') ? args.u64('data') : await executor.arena.place(new Uint8Array(PAGE)),
    sev_fd: args.descriptor('sev_fd') >>> 0,
  });
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_MEMORY_ENCRYPT_OP, command);
  return { ...finish(outcome), fw_error: kvm_sev_cmd.decode(data).error };
};

const encryptRegion =
  (request: number): Operation =>
  (executor, args) =>
    ioctlIn(executor, args.fd, request, kvm_enc_region.encode({ addr: args.backing, size: args.u64('size') }));

const createDevice: Operation = async (executor, args) => {
  const request = kvm_create_device.encode({ type: args.u32('type'), flags: args.u32('flags'), fd: 0xffff_ffff });
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_CREATE_DEVICE, request);
  const { flags, fd } = kvm_create_device.decode(data);
  if (outcome.ret !== 0n || (flags & 1) !== 0) return finish(outcome);
  return executor.finishFd({ ret: BigInt(fd), errno: null }, args);
};

const deviceAttr =
  (request: number): Operation =>
  async (executor, args) => {
    const value = new Uint8Array(512);
    new DataView(value.buffer).setBigUint64(0, args.u64('value'), true);
    const buffer = await executor.arena.place(value);
    const attribute = kvm_device_attr.encode({
      flags: args.u32('flags'),
      group: args.u32('group'),
      attr: args.u64('attr'),
      addr: args.has('addr') ? args.address('addr') : buffer,
    });
    const answer = await ioctlIn(executor, args.fd, request, attribute);
    if (answer.ret !== 0 || request !== IOCTL.KVM_GET_DEVICE_ATTR || !args.truthy('show')) return answer;
    const shown = await executor.arena.read(buffer, 8);
    return { ...answer, value: hex(new DataView(shown.buffer, shown.byteOffset).getBigUint64(0, true)) };
  };

const setMsrFilter: Operation = async (executor, args) => {
  const ranges = [];
  for (const range of args.items('ranges').slice(0, 16)) {
    const bitmap = await executor.arena.place(new Uint8Array(512).fill(range.number('fill')));
    ranges.push(
      kvm_msr_filter_range.decode(
        kvm_msr_filter_range.encode({
          flags: range.u32('flags'),
          nmsrs: range.u32('nmsrs'),
          base: range.u32('base'),
          bitmap: range.has('bitmap') ? range.u64('bitmap') : bitmap,
        }),
      ),
    );
  }
  return ioctlIn(executor, args.fd, IOCTL.KVM_X86_SET_MSR_FILTER, kvm_msr_filter.encode({ flags: args.u32('flags'), ranges }));
};

const getStatsFd: Operation = async (executor, args) =>
  executor.finishFd(await executor.calls.ioctl(args.fd, IOCTL.KVM_GET_STATS_FD, args.u64('arg')), args);

const readStatsHeader: Operation = async ({ calls }, args) => {
  const read = await calls.pread(args.fd, kvm_stats_header.size, 0n);
  if (read.ret <= 0n) return finish(read);
  const { flags, name_size, id_offset, desc_offset } = kvm_stats_header.decode(read.data);
  return { ...finish(read), flags, name_size, id_offset, desc_offset };
};

/** Ops on a VM, its devices and its statistics, without the interrupt controllers. */
export const VM_OPS: Readonly<Record<string, Operation>> = {
  create_vcpu: createVcpu,
  create_vcpus: createVcpus,
  set_user_memory_region: setUserMemoryRegion,
  set_user_memory_region2: setUserMemoryRegion2,
  memslot_many: memslotMany,
  create_guest_memfd: createGuestMemfd,
  set_memory_attributes: setMemoryAttributes,
  ioeventfd,
  ioeventfd_many: ioeventfdMany,
  irqfd,
  enable_cap: enableCap,
  get_dirty_log: getDirtyLog,
  clear_dirty_log: clearDirtyLog,
  reset_dirty_rings: valueOp(IOCTL.KVM_RESET_DIRTY_RINGS, 'arg'),
  dirty_ring_mmap: dirtyRingMmap,
  dirty_ring_collect: dirtyRingCollect,
  register_coalesced_mmio: coalescedZone(IOCTL.KVM_REGISTER_COALESCED_MMIO),
  unregister_coalesced_mmio: coalescedZone(IOCTL.KVM_UNREGISTER_COALESCED_MMIO),
  coalesced_many: coalescedMany,
  coalesced_read: coalescedRead,
  set_tss_addr: valueOp(IOCTL.KVM_SET_TSS_ADDR, 'addr'),
  set_identity_map_addr: setIdentityMapAddr,
  set_nr_mmu_pages: valueOp(IOCTL.KVM_SET_NR_MMU_PAGES, 'n'),
  get_nr_mmu_pages: valueOp(IOCTL.KVM_GET_NR_MMU_PAGES),
  get_clock: getClock,
  set_clock: setClock,
  memory_encrypt_op: memoryEncryptOp,
  memory_encrypt_reg_region: encryptRegion(IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION),
  memory_encrypt_unreg_region: encryptRegion(IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION),
  create_device: createDevice,
  has_device_attr: deviceAttr(IOCTL.KVM_HAS_DEVICE_ATTR),
  get_device_attr: deviceAttr(IOCTL.KVM_GET_DEVICE_ATTR),
  set_device_attr: deviceAttr(IOCTL.KVM_SET_DEVICE_ATTR),
  set_msr_filter: setMsrFilter,
  get_stats_fd: getStatsFd,
  read_stats_header: readStatsHeader,
};
