import { describe, expect, it } from 'vitest';
import { type Errno, type Kvm, type Outcome, SevCmdId, startWorld, type Vm, type World } from '../../client/index.js';

/**
 * The assertions of the kernel's selftest sev_migrate_tests, over the wire: every VM is of type DEFAULT with the legacy
 * KVM_SEV_INIT or KVM_SEV_ES_INIT, and stays in state LAUNCHING.
 */
const VCPUS = 4;
const DESTINATIONS = 3;
const LOCK_THREADS = 3;
const LOCK_ITERATIONS = 10_000;
const POLICY_ES = 4;
/** Moves that one thread of the locking test has under way. */
const IN_FLIGHT = 8;

const SEV = { name: 'SEV', es: false } as const;
const SEV_ES = { name: 'SEV-ES', es: true } as const;
type Kind = typeof SEV | typeof SEV_ES;

interface Setup {
  readonly world: World;
  readonly kvm: Kvm;
  readonly sevFd: number;
}

const setUp = async (...args: string[]): Promise<Setup & AsyncDisposable> => {
  const world = await startWorld({ args });
  const kvm = await world.process.openKvm();
  const sev = await world.process.openSev();
  return { world, kvm, sevFd: sev.fd, [Symbol.asyncDispose]: () => world[Symbol.asyncDispose]() };
};

const plainVm = async ({ kvm }: Setup, vcpus: number): Promise<Vm> => {
  const vm = await kvm.createVm();
  for (let id = 0; id < vcpus; id++) await vm.createVcpu(id);
  return vm;
};

/** A guest in state LAUNCHING; its save areas are encrypted unless told otherwise. */
const launchedVm = async ({ kvm, sevFd }: Setup, { es }: Kind, vcpus: number, updateVmsa = es): Promise<Vm> => {
  const vm = await kvm.createVm();
  await (es ? vm.sev.esInit() : vm.sev.init());
  for (let id = 0; id < vcpus; id++) await vm.createVcpu(id);
  await vm.sev.launchStart({ policy: es ? POLICY_ES : 0 }, sevFd);
  if (updateVmsa) await vm.sev.launchUpdateVmsa();
  return vm;
};

const errnoOf = <T>(outcome: Outcome<T>): Errno | null => outcome.errno;
const move = async (destination: Vm, source: Vm): Promise<Errno | null> =>
  errnoOf(await destination.try.moveEncContextFrom(source));
const copy = async (destination: Vm, source: Vm): Promise<Errno | null> =>
  errnoOf(await destination.try.copyEncContextFrom(source));

/** Closes VMs in this order, with their vCPUs, and finds that nothing is left and nothing was found. */
const freeAll = async ({ world }: Setup): Promise<void> => {
  await world.process[Symbol.asyncDispose]();
  const host = await world.simkvm.host.getHost();
  expect({ vms: host.vms, kmem: host.kmem, contexts: host.sev?.guest_count, findings: host.findings }).toEqual({
    vms: 0,
    kmem: [],
    contexts: 0,
    findings: 0n,
  });
};

describe.each([SEV, SEV_ES])('migrate from ($name)', (kind) => {
  it('goes along a chain of VMs, and not back into the dead source', async () => {
    await using setup = await setUp();
    const source = await launchedVm(setup, kind, VCPUS);
    const chain = [source];
    for (let index = 0; index < DESTINATIONS; index++) chain.push(await plainVm(setup, VCPUS));
    for (let index = 1; index < chain.length; index++) expect(await move(at(chain, index), at(chain, index - 1))).toBeNull();
    expect(await move(source, at(chain, DESTINATIONS))).toBe('EIO');
    for (const vm of chain) await vm.close();
    await freeAll(setup);
  });
});

const at = <T>(list: readonly T[], index: number): T => {
  const item = list[index];
  if (item === undefined) throw new Error(`no item ${index}`);
  return item;
};

describe('locking', () => {
  it(`${LOCK_THREADS} threads that move ${LOCK_THREADS} VMs into each other come to an end`, async () => {
    // One call at a time would never meet another: only where calls can overtake each other is there a lock to test.
    await using setup = await setUp('--preempt-at-locks');
    const vms = await Promise.all(Array.from({ length: LOCK_THREADS }, () => launchedVm(setup, SEV, VCPUS)));
    const seen = new Map<Errno | null, number>();
    const thread = async (own: number): Promise<void> => {
      const worker = async (): Promise<void> => {
        for (let iteration = 0; iteration < LOCK_ITERATIONS / IN_FLIGHT; iteration++) {
          const result = await move(at(vms, own), at(vms, iteration % LOCK_THREADS));
          seen.set(result, (seen.get(result) ?? 0) + 1);
        }
      };
      await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
    };
    await Promise.all(vms.map((_, own) => thread(own)));
    expect([...seen.keys()].filter((errno) => errno !== 'EINVAL' && errno !== 'EBUSY')).toEqual([]);
    expect(seen.get('EINVAL')).toBeGreaterThan(0);
    expect(seen.get('EBUSY')).toBeGreaterThan(0);
    await freeAll(setup);
  });
});

describe('migrate parameters', () => {
  it.each([
    ['a VM without vCPUs from a VM that is no SEV guest', (s: Setup) => plainVm(s, 0), (s: Setup) => plainVm(s, 0)],
    ['a SEV guest from a SEV-ES guest', (s: Setup) => launchedVm(s, SEV, 1), (s: Setup) => launchedVm(s, SEV_ES, VCPUS)],
    ['a SEV-ES guest from a SEV guest', (s: Setup) => launchedVm(s, SEV_ES, VCPUS), (s: Setup) => launchedVm(s, SEV, 1)],
    ['a VM without vCPUs from a SEV-ES guest with four', (s: Setup) => plainVm(s, 0), (s: Setup) => launchedVm(s, SEV_ES, VCPUS)],
    ['a VM from a SEV-ES guest without save areas', (s: Setup) => plainVm(s, 0), (s: Setup) => launchedVm(s, SEV_ES, 1, false)],
    [
      'a VM with as many vCPUs from a SEV-ES guest without save areas',
      (s: Setup) => plainVm(s, 1),
      (s: Setup) => launchedVm(s, SEV_ES, 1, false),
    ],
  ])('%s: EINVAL', async (_name, destination, source) => {
    await using setup = await setUp();
    expect(await move(await destination(setup), await source(setup))).toBe('EINVAL');
    await freeAll(setup);
  });
});

describe.each([SEV, SEV_ES])('mirror ($name)', (kind) => {
  it('is made, gets vCPUs, and accepts four commands', async () => {
    await using setup = await setUp();
    const source = await launchedVm(setup, kind, VCPUS);
    const mirror = await plainVm(setup, 0);
    expect(await copy(mirror, source)).toBeNull();
    for (let id = 0; id < VCPUS; id++) await mirror.createVcpu(id);
    if (kind.es) await mirror.sev.launchUpdateVmsa();
    const { KVM_SEV_LAUNCH_UPDATE_VMSA, KVM_SEV_GUEST_STATUS, KVM_SEV_DBG_DECRYPT, KVM_SEV_DBG_ENCRYPT } = SevCmdId;
    const allowed: readonly number[] = [
      KVM_SEV_LAUNCH_UPDATE_VMSA,
      KVM_SEV_GUEST_STATUS,
      KVM_SEV_DBG_DECRYPT,
      KVM_SEV_DBG_ENCRYPT,
    ];
    for (let id = 0; id < 104; id++)
      if (!allowed.includes(id))
        expect(errnoOf(await mirror.try.memoryEncryptOp({ id, sev_fd: setup.sevFd })), `command ${id}`).toBe('EINVAL');
    await mirror.sev.guestStatus();
    await freeAll(setup);
  });
});

describe('mirror parameters', () => {
  it('into itself: EINVAL', async () => {
    await using setup = await setUp();
    const vm = await launchedVm(setup, SEV, 1);
    expect(await copy(vm, vm)).toBe('EINVAL');
    await freeAll(setup);
  });

  it.each([
    ['a VM without vCPUs of a VM that is no SEV guest', (s: Setup) => plainVm(s, 0), (s: Setup) => plainVm(s, 1)],
    ['a VM with vCPUs of a SEV guest', (s: Setup) => plainVm(s, 1), (s: Setup) => launchedVm(s, SEV, 1)],
    ['a SEV guest of a SEV-ES guest', (s: Setup) => launchedVm(s, SEV, 1), (s: Setup) => launchedVm(s, SEV_ES, VCPUS)],
    ['a SEV-ES guest of a SEV guest', (s: Setup) => launchedVm(s, SEV_ES, VCPUS), (s: Setup) => launchedVm(s, SEV, 1)],
  ])('%s: EINVAL', async (_name, mirror, owner) => {
    await using setup = await setUp();
    expect(await copy(await mirror(setup), await owner(setup))).toBe('EINVAL');
    await freeAll(setup);
  });
});

describe('move and mirror', () => {
  it('an owner and its mirror move through three generations, in either order', async () => {
    await using setup = await setUp();
    const owners = [await launchedVm(setup, SEV, VCPUS)];
    const mirrors = [await plainVm(setup, 0)];
    expect(await copy(at(mirrors, 0), at(owners, 0))).toBeNull();
    for (let generation = 1; generation <= DESTINATIONS; generation++) {
      owners.push(await plainVm(setup, VCPUS));
      mirrors.push(await plainVm(setup, 0));
      const moveOwner = () => move(at(owners, generation), at(owners, generation - 1));
      const moveMirror = () => move(at(mirrors, generation), at(mirrors, generation - 1));
      for (const one of generation % 2 === 1 ? [moveMirror, moveOwner] : [moveOwner, moveMirror]) expect(await one()).toBeNull();
    }
    for (const vm of [...owners, ...mirrors]) await vm.close();
    await freeAll(setup);
  });

  it('mirrors may be freed before their owners', async () => {
    await using setup = await setUp();
    const owner = await launchedVm(setup, SEV, VCPUS);
    const mirror = await plainVm(setup, 0);
    expect(await copy(mirror, owner)).toBeNull();
    const [nextOwner, nextMirror] = [await plainVm(setup, VCPUS), await plainVm(setup, 0)];
    expect(await move(nextMirror, mirror)).toBeNull();
    expect(await move(nextOwner, owner)).toBeNull();
    for (const vm of [mirror, nextMirror, owner, nextOwner]) await vm.close();
    await freeAll(setup);
  });
});
