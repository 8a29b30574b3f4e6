import { setTimeout } from 'node:timers/promises';
import { SimKvm } from '../../client/index.js';
import { type ChildServer, startServer, startSimkvmd } from './child-server.js';
import type { Figure } from './figure.js';

/** VMs that are there when memory is looked at. */
const FEW = 1000;
const MANY = 10_000;
/** VMs that are being made at the same time. */
const PARALLEL = 16;
const MIB = 2 ** 20;
const PAGE = 4096;
/** What a server needs to come to rest. */
const SETTLE_MS = 1000;

const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;

const resting = async (server: ChildServer): Promise<number> => {
  await setTimeout(SETTLE_MS);
  return server.residentBytes();
};

/** What makes VMs of one vCPU and two memslots, as the target has them, until there are so many; they are left open. */
const vmMaker = async (simkvm: SimKvm): Promise<(count: number) => Promise<void>> => {
  const process = await simkvm.attach({ name: 'bench' });
  const kvm = await process.openKvm();
  const userspace_addr = await process.memory.mmap({ length: 2 * PAGE });
  let made = 0;
  return async (count) => {
    const maker = async (): Promise<void> => {
      while (made < count) {
        made++;
        const vm = await kvm.createVm();
        await vm.createVcpu(0);
        for (const slot of [0, 1])
          await vm.setUserMemoryRegion({ slot, guest_phys_addr: slot * PAGE, memory_size: PAGE, userspace_addr });
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, maker));
  };
};

const withVms = (count: number, resident: number, idle: number, target: string): Figure => ({
  name: `resident memory, ${count} VMs`,
  ours: `${mib(resident)}, ${((resident - idle) / count / 1024).toFixed(1)} KiB for each VM`,
  baseline: `idle ${mib(idle)}`,
  ratio: resident / idle,
  target,
});

/** Resident memory: idle, against a bare grpc-js server's, and with VMs, against idle. */
export const measureMemory = async (echoProgram: string): Promise<Figure[]> => {
  await using echo = await startServer(echoProgram);
  await using simkvmd = await startSimkvmd();
  const bare = await resting(echo);
  const idle = await resting(simkvmd);
  await using simkvm = await SimKvm.connect(simkvmd.target);
  const makeVms = await vmMaker(simkvm);
  await makeVms(FEW);
  const few = await resting(simkvmd);
  await makeVms(MANY);
  const many = await resting(simkvmd);
  return [
    {
      name: 'resident memory, idle',
      ours: mib(idle),
      baseline: `bare echo ${mib(bare)}`,
      ratio: idle / bare,
      target: 'at most 80 MiB',
    },
    withVms(FEW, few, idle, 'none set'),
    withVms(MANY, many, idle, 'at most 300 MiB'),
  ];
};
