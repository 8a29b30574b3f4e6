import { type Errno, KvmError, type Outcome, tolerateMigratedVm, type Vm } from '../index.js';
import type { Scenario } from './scenario.js';

/** One step of taking a VM apart. */
interface Step {
  readonly name: string;
  readonly call: (vm: Vm) => Promise<Outcome<number>>;
}

/** A teardown: what a VMM calls, in groups after each of which one may look at what the kernel still holds. */
const stepsOf = ({ device, source }: Scenario): Readonly<Record<'unplug' | 'memslots', readonly Step[]>> => ({
  unplug: device.unplug(),
  memslots: source.memory.slots.map(({ slot, gpa }) => ({
    name: `KVM_SET_USER_MEMORY_REGION delete (slot ${slot})`,
    call: (vm) => vm.try.setUserMemoryRegion({ slot, guest_phys_addr: gpa, memory_size: 0, userspace_addr: 0 }),
  })),
});

export interface Teardown {
  /** Whether the VMM got to its end. One that meets an error that it does not know aborts, as QEMU does. */
  readonly finished: boolean;
  readonly calls: readonly { readonly call: string; readonly errno: Errno | null }[];
  /** Failures that `tolerateMigratedVm` has swallowed, by ioctl. */
  readonly swallowed: Readonly<Record<string, number>>;
}

/**
 * The source's VMM takes its VM apart: unplug the device, delete the memory slots, close everything. At the first error it
 * aborts; the kernel then closes what the process had open.
 * @param tolerant with the SDK's wrapper around the VM
 * @param observe is told of each point at which to look at the kernel
 */
export const tearDown = async (
  scenario: Scenario,
  { tolerant, moved }: { tolerant: boolean; moved: boolean },
  observe: (point: string) => Promise<void>,
): Promise<Teardown> => {
  const { source } = scenario;
  const wrapper = tolerant ? tolerateMigratedVm(source.vm) : null;
  if (moved) wrapper?.moved();
  const vm = wrapper?.vm ?? source.vm;
  const calls: { call: string; errno: Errno | null }[] = [];
  let finished = true;
  for (const [point, steps] of Object.entries(stepsOf(scenario))) {
    for (const { name, call } of steps) {
      if (!finished) break;
      const { errno } = await call(vm);
      calls.push({ call: name, errno });
      finished = errno === null;
    }
    await observe(`after ${point}`);
  }
  await closeAll(scenario);
  await observe('after close');
  return { finished, calls, swallowed: Object.fromEntries(wrapper?.swallowed ?? []) };
};

/** Only unplugs the device, whatever the answers are. */
export const unplug = async (scenario: Scenario): Promise<void> => {
  for (const { call } of stepsOf(scenario).unplug) await call(scenario.source.vm);
};

/** Closes everything; the process exits. */
export const closeAll = async ({ source }: Scenario): Promise<void> => {
  await source.stop();
  await source.close();
};

/** What the kernel answers on a VM that is gone: nothing is held. */
export const isGone = (error: unknown): boolean => KvmError.from(error).errno === 'ENOENT';
