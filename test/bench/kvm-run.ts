import { Client, credentials } from '@grpc/grpc-js';
import { SimKvm } from '../../client/index.js';
import { KvmSystem } from '../../gen/services.js';
import type { ChildServer } from './child-server.js';
import { alternate, type Figure } from './figure.js';
import { microsecondsEach } from './measure-time.js';

const PAGE = 4096;
const CODE_AT = 0x1000;
const ROUNDS = 15;
const CALLS = 200;
/** out 0x80, al; jmp back to it: in real mode at 0:1000. */
const OUT_LOOP = Uint8Array.of(0xe6, 0x80, 0xeb, 0xfc);

/** A vCPU whose guest does OUT in a loop. */
const startGuest = async (simkvm: SimKvm) => {
  const process = await simkvm.attach({ name: 'bench' });
  const kvm = await process.openKvm();
  const vm = await kvm.createVm();
  const userspace_addr = await process.memory.mmap({ length: 2 * PAGE });
  await process.memory.write(userspace_addr + BigInt(CODE_AT), OUT_LOOP);
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: 2 * PAGE, userspace_addr });
  const vcpu = await vm.createVcpu(0);
  const sregs = await vcpu.getSregs();
  await vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0, selector: 0 } });
  await vcpu.setRegs({ ...(await vcpu.getRegs()), rip: CODE_AT, rflags: 2 });
  return { process, kvm, vcpu };
};

/** The round trip of KVM_RUN for a guest's OUT, against a bare echo of a small message. */
export const measureKvmRun = async (simkvmd: ChildServer, echo: ChildServer): Promise<Figure[]> => {
  await using simkvm = await SimKvm.connect(simkvmd.target);
  const { process, kvm, vcpu } = await startGuest(simkvm);
  await using _process = process;
  const { reason } = await vcpu.run();
  if (reason !== 'KVM_EXIT_IO') throw new Error(`the guest ended with ${reason}`);
  const client = new Client(echo.target, credentials.createInsecure());
  const { path, requestSerialize, responseDeserialize } = KvmSystem.checkExtension;
  const bare = (): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const request = { fd: kvm.fd, extension: 10 };
      client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) =>
        error === null ? resolve(response) : reject(error),
      );
    });
  const pair = await alternate(
    ROUNDS,
    () => microsecondsEach(CALLS, () => vcpu.run()),
    () => microsecondsEach(CALLS, bare),
  );
  client.close();
  return [
    {
      name: 'KVM_RUN for an OUT',
      ours: `${pair.ours.toFixed(0)} us`,
      baseline: `bare echo ${pair.baseline.toFixed(0)} us`,
      ratio: pair.ratio,
      target: 'none set',
    },
  ];
};
