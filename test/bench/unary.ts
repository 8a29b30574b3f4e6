import { Client, credentials } from '@grpc/grpc-js';
import { KvmCap, SimKvm } from '../../client/index.js';
import type { ClientMethod } from '../../client/transport.js';
import { KvmSystem, KvmVm } from '../../gen/services.js';
import type { ChildServer } from './child-server.js';
import { alternate, type Figure } from './figure.js';

const ROUNDS = 41;
/** Calls of one measurement, by how many are outstanding: short ones, so that what else the machine does falls on both. */
const CALLS = [
  [1, 150],
  [16, 600],
  [128, 1000],
] as const;
const TARGET = 'at most 1.1';
const PAGE = 4096;

/** Microseconds for each of `calls` calls, `outstanding` of them at a time. */
const microsecondsEach = async (calls: number, outstanding: number, call: () => Promise<unknown>): Promise<number> => {
  let left = calls;
  const caller = async (): Promise<void> => {
    while (left-- > 0) await call();
  };
  const begin = performance.now();
  await Promise.all(Array.from({ length: outstanding }, caller));
  return ((performance.now() - begin) * 1000) / calls;
};

/** The same call as a grpc-js client without anything around it makes it. */
const bareCall =
  <ReqInit, Res>(client: Client, method: ClientMethod<ReqInit, Res>, request: ReqInit) =>
  (): Promise<Res | undefined> =>
    new Promise((resolve, reject) => {
      client.makeUnaryRequest(method.path, method.requestSerialize, method.responseDeserialize, request, (error, response) => {
        if (error === null) resolve(response);
        else reject(error);
      });
    });

/** A unary ioctl through the SDK against a bare grpc-js echo whose messages have the same sizes and the same codec. */
export const measureUnary = async (simkvmd: ChildServer, echo: ChildServer): Promise<Figure[]> => {
  await using simkvm = await SimKvm.connect(simkvmd.target);
  await using process = await simkvm.attach({ name: 'bench' });
  await using kvm = await process.openKvm();
  await using vm = await kvm.createVm();
  const client = new Client(echo.target, credentials.createInsecure());
  const userspace_addr = await process.memory.mmap({ length: PAGE });
  const region = { slot: 0, guest_phys_addr: 0, memory_size: PAGE, userspace_addr };
  const extension = KvmCap.KVM_CAP_NR_MEMSLOTS;
  const ioctls = [
    {
      name: 'KVM_CHECK_EXTENSION',
      ours: () => kvm.checkExtension(extension),
      bare: bareCall(client, KvmSystem.checkExtension, { fd: kvm.fd, extension }),
    },
    {
      name: 'KVM_SET_USER_MEMORY_REGION, again',
      ours: () => vm.setUserMemoryRegion(region),
      bare: bareCall(client, KvmVm.setUserMemoryRegion, { fd: vm.fd, region }),
    },
  ];
  const figures: Figure[] = [];
  for (const { name, ours, bare } of ioctls)
    for (const [outstanding, calls] of CALLS) {
      const pair = await alternate(
        ROUNDS,
        () => microsecondsEach(calls, outstanding, ours),
        () => microsecondsEach(calls, outstanding, bare),
      );
      figures.push({
        name: `${name}, ${outstanding} outstanding`,
        ours: `${pair.ours.toFixed(0)} us`,
        baseline: `bare echo ${pair.baseline.toFixed(0)} us`,
        ratio: pair.ratio,
        target: TARGET,
      });
    }
  client.close();
  return figures;
};
