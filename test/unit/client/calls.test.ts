import { describe, expect, it } from 'vitest';
import { deviceCalls } from '../../../client/device.js';
import { eventFdCalls } from '../../../client/eventfd.js';
import { fileCalls } from '../../../client/file.js';
import { Descriptor, Handle } from '../../../client/handle.js';
import { Host } from '../../../client/host.js';
import { keyDistributionCalls } from '../../../client/key-distribution.js';
import { kvmCalls } from '../../../client/kvm.js';
import { memoryCalls } from '../../../client/memory.js';
import { receiveVm, sendVm } from '../../../client/migrate.js';
import { moveContext, validateMove } from '../../../client/migration.js';
import { migrationCalls } from '../../../client/migrations.js';
import { Process, processCalls } from '../../../client/process.js';
import { relayMigration } from '../../../client/relay.js';
import { sevCalls } from '../../../client/sev.js';
import { sevPlatformCalls } from '../../../client/sev-platform.js';
import { SimKvm } from '../../../client/sim-kvm.js';
import { vcpuCalls } from '../../../client/vcpu-calls.js';
import { Vm } from '../../../client/vm.js';
import { vmCalls } from '../../../client/vm-calls.js';
import { SERVICES } from '../../../gen/services.js';
import { callerOver, FakeTransport, refusal, zero } from './fake-transport.js';

describe('every RPC of the contract', () => {
  /** The paths that `act` sends, whatever becomes of the answers. */
  const pathsOf = async (act: (transport: FakeTransport) => Iterable<unknown>): Promise<string[]> => {
    const transport = new FakeTransport();
    await Promise.allSettled(act(transport));
    return transport.sent.map(({ path }) => path);
  };

  const drain = async (stream: AsyncIterable<unknown>): Promise<void> => {
    for await (const _message of stream);
  };

  it('has a method in the SDK', async () => {
    const paths = await pathsOf((transport) => {
      const caller = callerOver(transport);
      const vm = new Vm(caller, new Descriptor(4));
      const process = new Process(caller, 2, 'token', null);
      const simkvm = new SimKvm(transport);
      const { host } = simkvm;
      const onDescriptors = [vmCalls, sevCalls, vcpuCalls, kvmCalls, deviceCalls, fileCalls, eventFdCalls, sevPlatformCalls];
      const tables = [...onDescriptors, keyDistributionCalls, migrationCalls];
      const calls = tables.flatMap((table) => Object.values(table).map((call) => Reflect.apply(call, undefined, [vm])));
      return [
        ...calls,
        process.memory.memfdCreate('m'),
        process.memory.mmap({ length: 4096 }),
        process.memory.munmap(0, 1),
        process.memory.mprotect(0, 1, 0),
        process.memory.madvise(0, 1, 4),
        process.memory.read(0, 1),
        process.memory.write(0, 'x'),
        process.memory.load(0, Uint8Array.of(1)),
        drain(process.memory.dump(0, 1)),
        process.openKvm(),
        process.eventfd(),
        process.pipe(),
        process.poll([], 0),
        process.signal(1),
        process.sigprocmask(0, [10]),
        process.sendFd(3, { pid: 3 }),
        process.acceptFds(1),
        process.ioctl(3, 1, { value: 0 }),
        process.fork(),
        process.listFds(),
        process.exit(),
        vm.dup(),
        vm.close(),
        drain(process.caller.serverStream(SERVICES.EventFdService.watch, { fd: 3 })),
        drain(moveContext(new Vm(caller, new Descriptor(5)), 4)),
        validateMove(new Vm(caller, new Descriptor(5)), 4),
        sendVm(new Vm(caller, new Descriptor(5))),
        receiveVm(process),
        relayMigration({ session: 's', source: vm, destination: process }),
        simkvm.migrations.list(),
        drain(simkvm.migrations.watch('s')),
        simkvm.attach(),
        simkvm.spawn(),
        host.getHost(),
        host.listVms(),
        host.getVm(1),
        host.setPostMovePolicy('VM_DEAD'),
        host.listFindings(),
        host.reset(),
        host.readPhysical(0, 1),
        host.getCosts(),
      ];
    });
    const contract = Object.values(SERVICES).flatMap((service) => Object.values(service).map(({ path }) => path));
    expect(contract.filter((path) => !paths.includes(path))).toEqual([]);
  });

  it('is in a table once: no line is another one’s copy', () => {
    for (const table of [vmCalls, sevCalls, vcpuCalls, kvmCalls, deviceCalls, fileCalls, memoryCalls, processCalls])
      expect(new Set(Object.values(table)).size).toBe(Object.keys(table).length);
  });
});

describe('the two forms of a call', () => {
  const vmOver = (transport: FakeTransport): Vm => new Vm(callerOver(transport), new Descriptor(4));

  it('give the value of one that the kernel carried out', async () => {
    const vm = vmOver(new FakeTransport());
    expect(await vm.createIrqchip()).toBe(0);
    expect(await vm.try.createIrqchip()).toEqual({ errno: null, value: 0, error: null });
  });

  it('throw the errno, and give it as a value', async () => {
    const vm = vmOver(new FakeTransport(() => refusal('EEXIST', 'IRQCHIP_EXISTS')));
    await expect(vm.createIrqchip()).rejects.toMatchObject({ name: 'KvmError', errno: 'EEXIST', reason: 'IRQCHIP_EXISTS' });
    expect(await vm.try.createIrqchip()).toMatchObject({ errno: 'EEXIST', value: null, error: { reason: 'IRQCHIP_EXISTS' } });
  });

  it('both throw what is no answer of the kernel', async () => {
    const vm = vmOver(new FakeTransport(() => ({ failure: { code: 4 } })));
    await expect(vm.createIrqchip()).rejects.toMatchObject({ errno: null, reason: 'DEADLINE_EXCEEDED' });
    await expect(vm.try.createIrqchip()).rejects.toMatchObject({ errno: null, reason: 'DEADLINE_EXCEEDED' });
  });

  it('send the arguments where the kernel’s structure has them', async () => {
    const transport = new FakeTransport();
    await vmOver(transport).ioeventfd({ addr: 0xfe00_1000n, len: 4, fd: 9, flags: 1, datamatch: 2n });
    const request = SERVICES.KvmVm.ioeventfd.requestDeserialize(transport.sent[0]?.request ?? Buffer.alloc(0));
    expect(request).toMatchObject({ fd: 4, ioeventfd: { addr: 0xfe00_1000n, len: 4, fd: 9, flags: 1, datamatch: 2n } });
  });

  it('make objects of descriptors, which act in the same way as what made them', async () => {
    const response = SERVICES.KvmVm.createVcpu.responseSerialize({ ret: 8 });
    const transport = new FakeTransport(({ path }) => (path.endsWith('CreateVcpu') ? { response } : zero));
    const vcpu = await vmOver(transport).with({ thread: 3 }).createVcpu(0);
    await vcpu.nmi();
    expect(vcpu.fd).toBe(8);
    expect(transport.sent.map(({ headers }) => headers.thread)).toEqual([3, 3]);
  });
});

describe('an object that holds a descriptor', () => {
  const handleOver = (transport: FakeTransport): Handle => new Handle(callerOver(transport), new Descriptor(4));

  it('is closed once, also through another view of it', async () => {
    const transport = new FakeTransport();
    const handle = handleOver(transport);
    await handle.with({ thread: 1 }).close();
    await handle.close();
    expect(transport.sent).toHaveLength(1);
  });

  it('is EBADF afterwards, without asking: the number may be another file by then', async () => {
    const transport = new FakeTransport();
    const vm = new Vm(callerOver(transport), new Descriptor(4));
    await vm.close();
    expect(() => vm.fd).toThrow(expect.objectContaining({ errno: 'EBADF', reason: 'HANDLE_CLOSED' }));
    await expect(vm.createIrqchip()).rejects.toMatchObject({ errno: 'EBADF' });
    expect(transport.sent).toHaveLength(1);
  });

  it('gives EBADF as a value in the try form', async () => {
    const vm = new Vm(callerOver(new FakeTransport()), new Descriptor(4));
    await vm.close();
    expect((await vm.try.createIrqchip()).errno).toBe('EBADF');
  });

  it('is closed by `await using`, and not minded where its process has ended before', async () => {
    const transport = new FakeTransport(() => refusal('ESRCH', 'PROCESS_NOT_FOUND'));
    {
      await using handle = handleOver(transport);
      expect(handle.fd).toBe(4);
    }
    expect(transport.sent).toHaveLength(1);
  });

  it('says so where closing fails', async () => {
    await expect(handleOver(new FakeTransport(() => refusal('EBADF', 'FD_NOT_OPEN'))).close()).rejects.toMatchObject({
      errno: 'EBADF',
    });
  });

  it('is another object after dup: closing one leaves the other', async () => {
    const response = SERVICES.ProcessService.dup.responseSerialize({ ret: 11 });
    const transport = new FakeTransport(({ path }) => (path.endsWith('Dup') ? { response } : zero));
    const vm = new Vm(callerOver(transport), new Descriptor(4));
    const other = await vm.dup();
    await vm.close();
    expect(other.fd).toBe(11);
    expect(await other.createIrqchip()).toBe(0);
  });
});

describe('a list', () => {
  it('is read to its last page', async () => {
    const { listVms } = SERVICES.HostService;
    const transport = new FakeTransport(({ request }) => {
      const first = listVms.requestDeserialize(request).page_token === '';
      const page = first ? { vms: [{ vm_id: 1 }], next_page_token: '1' } : { vms: [{ vm_id: 2 }] };
      return { response: listVms.responseSerialize(page) };
    });
    const vms = await new Host(callerOver(transport)).listVms();
    expect(vms.map(({ vm_id }) => vm_id)).toEqual([1, 2]);
  });
});
