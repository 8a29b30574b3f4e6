import { setTimeout } from 'node:timers/promises';
import { SimKvm } from '../../client/index.js';
import { type ChildServer, startServer, startSimkvmd } from './child-server.js';
import type { Figure } from './figure.js';

const VMS = 1000;
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

/** Makes VMs of one vCPU and two memslots, as the target has them; they are left open. */
const makeVms = async (simkvm: SimKvm): Promise<void> => {
  const process = await simkvm.attach({ name: 'bench' });
  const kvm = await process.openKvm();
  const userspace_addr = await process.memory.mmap({ length: 2 * PAGE });
  let left = VMS;
  const maker = async (): Promise<void> => {
    while (left-- > 0) {
      const vm = await kvm.createVm();
      await vm.createVcpu(0);
      for (const slot of [0, 1])
        await vm.setUserMemoryRegion({ slot, guest_phys_addr: slot * PAGE, memory_size: PAGE, userspace_addr });
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, maker));
};

/** Resident memory: idle, against a bare grpc-js server's, and with 1,000 VMs, against idle. */
export const measureMemory = async (echoProgram: string): Promise<Figure[]> => {
  await using echo = await startServer(echoProgram);
  await using simkvmd = await startSimkvmd();
  const bare = await resting(echo);
  const idle = await resting(simkvmd);
  await using simkvm = await SimKvm.connect(simkvmd.target);
  await makeVms(simkvm);
  const full = await resting(simkvmd);
  return [
    {
      name: 'resident memory, idle',
      ours: mib(idle),
      baseline: `bare echo ${mib(bare)}`,
      ratio: idle / bare,
      target: 'at most 80 MiB',
    },
    {
      name: `resident memory, ${VMS} VMs`,
      ours: `${mib(full)}, ${((full - idle) / VMS / 1024).toFixed(1)} KiB for each VM`,
      baseline: `idle ${mib(idle)}`,
      ratio: full / idle,
      target: 'at most 300 MiB with 10,000',
    },
  ];
};
