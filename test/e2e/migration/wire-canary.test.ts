import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { migrate, type Process, SimKvm, type Vm } from '../../../client/index.js';
import { startTapProxy } from '../../helpers/tap-proxy.js';
import {
  BLOCKS,
  derive,
  derived,
  ENTRY,
  FLAT_SEGMENTS,
  FORGET,
  remember,
  SAY_BY_MSR,
  SAY_BY_PORT,
} from '../canary/canary-guest.js';
import { type Secret, seek } from '../canary/observed-host.js';
import { Crossing } from './crossing.js';
import { keysOf, type Machine } from './machine.js';

/*
 * A guest derives random blocks from a secret in its memory, and migrates. Whoever reads what the daemons say to each other, what
 * they answer to their VMMs, and what they log, finds no block of an encrypted guest, and every one of a plain one.
 */

const MEMORY_BYTES = 0x4_0000;
const SECRET = 0x9000;
/** What a guest with SSE needs in CR4. */
const CR4_OSFXSR = 0x200n;
const ES_POLICY = 4;
const UNSEALED = '--migration-unsealed';

interface Kind {
  readonly name: string;
  readonly code: readonly number[];
  /** Initialises the VM and gives its policy; null: it has none. */
  readonly init: (vm: Vm) => Promise<unknown>;
  readonly policy: number | null;
}

const PLAIN: Kind = { name: 'plain', code: [...derive(SECRET), ...SAY_BY_PORT], init: async () => {}, policy: null };
const SEV: Kind = {
  name: 'SEV',
  code: [...derive(SECRET), ...FORGET, ...SAY_BY_PORT],
  init: (vm) => vm.sev.init(),
  policy: 0,
};
const SEV_ES: Kind = {
  name: 'SEV-ES',
  code: [...derive(SECRET), ...remember(SECRET), ...SAY_BY_MSR],
  init: (vm) => vm.sev.esInit(),
  policy: ES_POLICY,
};

/** A VMM on a machine, and everything that the daemon answers to it. */
const tappedVmm = async ({ address }: Machine) => {
  const tap = await startTapProxy(address);
  const simkvm = await SimKvm.connect(tap.target);
  const end = async (): Promise<void> => {
    await simkvm[Symbol.asyncDispose]();
    await tap[Symbol.asyncDispose]();
  };
  return { process: await simkvm.attach({ name: 'observed' }), answered: () => tap.take(), [Symbol.asyncDispose]: end };
};

/** A guest that has derived its blocks, and they. */
const secretGuest = async (process: Process, { code, policy, init }: Kind) => {
  const secret = new Uint8Array(randomBytes(16));
  const [kvm, sev] = [await process.openKvm(), await process.openSev()];
  const uaddr = await process.memory.mmap({ length: MEMORY_BYTES });
  await process.memory.write(uaddr + BigInt(ENTRY), Uint8Array.from(code));
  await process.memory.write(uaddr + BigInt(SECRET), secret);
  const vm = await kvm.createVm();
  await init(vm);
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: uaddr, flags: 0 });
  const vcpu = await vm.createVcpu(0);
  await vcpu.setCpuid2(await kvm.getSupportedCpuid());
  const sregs = await vcpu.getSregs();
  await vcpu.setSregs({ ...sregs, ...FLAT_SEGMENTS, cr0: sregs.cr0 | 1n, cr4: sregs.cr4 | CR4_OSFXSR });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
  if (policy !== null) {
    await vm.memoryEncryptRegRegion({ addr: uaddr, size: MEMORY_BYTES });
    await vm.sev.launchStart({ policy }, sev.fd);
    await vm.sev.launchUpdateData({ uaddr, len: MEMORY_BYTES });
    if (policy === ES_POLICY) await vm.sev.launchUpdateVmsa();
    await vm.sev.launchMeasure({ len: 48 });
    await vm.sev.launchFinish();
  }
  const { reason } = await vcpu.run();
  // The exit is not over before the VMM says so.
  await vcpu.try.run({ immediate_exit: 1 });
  return { vm, vcpu, reason, blocks: derived(secret) };
};

/** Lets a guest migrate. @returns which of its blocks and of the daemons' keys were seen where */
const seenOf = async (kind: Kind, ...args: readonly string[]) => {
  await using crossing = await Crossing.start({ args: ['--log-level', 'debug', ...args] });
  const { here, there, address, middle } = crossing;
  const wire: Buffer[] = [];
  middle.meddler = ({ bytes }) => {
    wire.push(bytes);
    return [bytes];
  };
  await using from = await tappedVmm(here);
  await using to = await tappedVmm(there);
  const { vm, reason, blocks } = await secretGuest(from.process, kind);
  const { received } = await migrate(vm, { to: { address, process: to.process } });
  const [vcpu] = received.vcpus;
  expect((await vcpu?.run())?.reason).toBe(reason);
  for (const { userspace_addr, memory_size } of received.slots)
    if (kind !== PLAIN) await to.process.memory.read(userspace_addr, Number(memory_size));
  await vcpu?.getRegs();
  const secrets: Secret[] = [
    ...blocks.map((bytes, index) => ({ what: `block ${index}`, bytes })),
    ...keysOf(here, there)().map((bytes, index) => ({ what: `channel key ${index}`, bytes })),
  ];
  const replies = Buffer.concat([from.answered(), to.answered()]);
  const { dram, ...found } = seek(secrets, { dram: [Buffer.concat(wire)], replies, log: Buffer.from(here.log + there.log) });
  return { wire: dram, ...found };
};

const NOTHING = { wire: [], replies: [], log: [] };

describe('what a guest derives from its secret', () => {
  it.each([SEV, SEV_ES])('is seen nowhere while it migrates, also where the daemons do not seal ($name)', async (kind) => {
    expect(await seenOf(kind, UNSEALED)).toEqual(NOTHING);
  });

  it('is sealed by the daemons where it is a plain guest’s, with keys that nobody sees', async () => {
    expect(await seenOf(PLAIN)).toEqual(NOTHING);
  });

  it('is all there where neither guest nor daemons protect it', async () => {
    const { wire, replies, log } = await seenOf(PLAIN, UNSEALED);
    expect([new Set(wire).size, replies, log]).toEqual([BLOCKS, [], []]);
  });
});
