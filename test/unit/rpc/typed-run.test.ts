import { describe, expect, it } from 'vitest';
import { failed } from '../../../server/kernel/failure.js';
import type { Task } from '../../../server/kernel/sched/task.js';
import { sleeps } from '../../../server/kernel/sched/wait.js';
import { mmap } from '../../../server/kernel/syscalls/memory.js';
import { KVM_EXIT } from '../../../server/kernel/uapi/constants.js';
import { kvm_run, kvm_run__io, kvm_run__mmio } from '../../../server/kernel/uapi/kvm-run.js';
import { MAP, PROT } from '../../../server/kernel/uapi/mman.js';
import type { Host, Reply } from '../../../server/rpc/call.js';
import { run } from '../../../server/rpc/ioctl/run.js';
import type { Message } from '../../../server/rpc/ioctl/struct-message.js';
import { createVolatileMigrationHost } from '../../../server/rpc/migration/migration-host.js';
import { ProcessRegistry } from '../../../server/rpc/process-registry.js';
import { Guest } from '../kernel/kvm/x86/guest.js';

const RUN_AREA = 3 * 4096;
const PIO_AT = 4096;
/** in al, 0x10; mov bl, al; mov al, [0x1000:0x5000] beyond RAM; mov bh, al; hlt */
const PROGRAM = 'e410 88c3 b80010 8ed8 a00050 88c7 f4';

/** A guest whose vCPU is run by typed calls, and whose run area is mapped all the while. */
const setUp = () => {
  const guest = new Guest().program(PROGRAM);
  const { kernel, process, vcpuFd, mm } = guest;
  const migration = createVolatileMigrationHost();
  const host: Host = { kernel, processes: new ProcessRegistry(kernel), version: 'test', bootId: 'test', migration, log: null };
  const caller = { process: process.process, thread: undefined, onLoopback: true, peer: '127.0.0.1:1' };
  const flags = { prot: PROT.READ | PROT.WRITE, flags: MAP.SHARED };
  const area = process.call(function* map(current) {
    return mmap(current, { address: 0n, length: BigInt(RUN_AREA), fd: vcpuFd, offset: 0n, ...flags });
  });
  if (failed(area)) throw new Error(area.reason);
  const mapped = (): Uint8Array => {
    const bytes = mm.read(area, RUN_AREA);
    if (failed(bytes)) throw new Error(bytes.reason);
    return bytes;
  };
  const typed = (input: Message = {}): Reply<Message> =>
    process.call(function* call(current: Task) {
      const reply = run.handle(current, host, { fd: vcpuFd, input }, caller);
      return sleeps(reply) ? yield* reply : reply;
    });
  const store = (offset: number, bytes: Uint8Array): void => {
    if (mm.write(area + offset, bytes) !== null) throw new Error('not written');
  };
  return { guest, mapped, typed, store };
};

describe('typed KVM_RUN', () => {
  it('replies with what the mapped page has', () => {
    const { mapped, typed } = setUp();
    const { response } = typed();
    const { exit_reason } = kvm_run.decode(mapped());
    const { direction, size, port, count, data_offset } = kvm_run__io.decode(mapped());
    expect(exit_reason).toBe(KVM_EXIT.IO);
    expect(response?.run).toMatchObject({ exit_reason, io: { direction, size, port, count, data_offset } });
  });

  it('writes its inputs to where a mapping shows them, and a store through the mapping is an input as well', () => {
    const { guest, mapped, typed, store } = setUp();
    typed();
    typed({ io_in: Uint8Array.of(0x5a) });
    expect(mapped()[PIO_AT]).toBe(0x5a);
    expect(kvm_run.decode(mapped()).exit_reason).toBe(KVM_EXIT.MMIO);
    store(kvm_run__mmio.fields.data.offset, Uint8Array.of(0xa5));
    expect(typed().response?.run).toMatchObject({ exit_reason: KVM_EXIT.HLT });
    expect(guest.regs.rbx).toBe(0xa55an);
  });

  it('obeys an immediate_exit that was stored through the mapping, and leaves one of its own there', () => {
    const { mapped, typed, store } = setUp();
    const { offset } = kvm_run.fields.immediate_exit;
    store(offset, Uint8Array.of(1));
    expect(typed().failure?.errno).toBe('EINTR');
    store(offset, Uint8Array.of(0));
    expect(typed({ immediate_exit: 1 }).failure?.errno).toBe('EINTR');
    expect(mapped()[offset]).toBe(1);
  });
});
