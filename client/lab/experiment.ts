import type { PostMovePolicyName, SimKvm } from '../index.js';
import { type FindingCount, type Held, sampleHeld, startCollecting, startMeasuring, type Work } from './measure.js';
import { type FailedCall, type QueueReport, Scenario, type ScenarioOptions } from './scenario.js';
import { closeAll, type Teardown, tearDown } from './teardown.js';
import type { Launch } from './vmm/launch.js';
import type { ThreadEnd } from './vmm/vcpu-thread.js';

/** What happens to the guest in one row of the table. */
export type Subject =
  | { readonly kind: 'move'; readonly policy: PostMovePolicyName; readonly tolerant: boolean }
  /** Control: the device is unplugged, the slots are deleted, everything is closed; nothing has moved. */
  | { readonly kind: 'teardown-without-move' }
  /** Control: everything is closed, and nothing else. */
  | { readonly kind: 'close-only' };

/** One row: everything in it has been observed through the API. */
export interface Row {
  readonly subject: Subject;
  readonly options: Omit<ScenarioOptions, 'image'> & { readonly image: string };
  /**
   * What the guest's owner found: the digest that the platform has signed, and whether the measurement is of the one expected.
   */
  readonly launch: { readonly digest: string | null; readonly asExpected: boolean; readonly measurementVerifies: boolean };
  readonly move: {
    readonly errno: string | null;
    /** Simulated time that the move itself takes, with all locks held; the guest does not run. */
    readonly blackoutNs: number;
    /** What that time is made of. */
    readonly blackout: Readonly<Record<string, number>>;
    readonly phases: readonly { readonly phase: string; readonly simulatedNs: number }[];
    /** All that the host did because of the move, also afterwards in the background. */
    readonly work: Work;
  } | null;
  readonly teardown: Teardown | null;
  readonly teardownWork: Work;
  readonly held: readonly Held[];
  readonly queues: readonly QueueReport[];
  readonly rungAtDestination: Readonly<Record<string, number>>;
  /** How the vCPUs' threads of the last VMM ended: stopped by it, or otherwise. */
  readonly guestEnd: readonly ThreadEnd[];
  readonly failedCalls: readonly FailedCall[];
  readonly findings: readonly FindingCount[];
}

const DISMANTLE_POLL_MS = 1;

/** Waits until a worker that dismantles a VM in the background is done. */
const dismantled = async (simkvm: SimKvm, vmId: number): Promise<void> => {
  while ((await simkvm.host.getVm(vmId)).dismantling) await new Promise((resolve) => setTimeout(resolve, DISMANTLE_POLL_MS));
};

/** Runs the experiment for one row. */
export const runRow = async (simkvm: SimKvm, options: ScenarioOptions, subject: Subject): Promise<Row> => {
  const { host } = simkvm;
  const findings = await startCollecting(host);
  const scenario = await Scenario.start(simkvm, options);
  const { launched, sourceId } = scenario;
  const held: Held[] = [];
  const observe = async (point: string): Promise<void> => {
    held.push(await sampleHeld(host, sourceId, point));
  };
  const { runs } = options.image;
  if (runs) await scenario.complete();
  await observe('running');

  const move = subject.kind === 'move' ? await moveGuest(simkvm, scenario, subject.policy, observe) : null;
  if (subject.kind !== 'move' && runs) await scenario.source.stop();

  const teardownWork = await startMeasuring(host);
  let teardown: Teardown | null = null;
  if (subject.kind === 'close-only') await closeAll(scenario);
  else {
    const tolerant = subject.kind === 'move' && subject.tolerant;
    teardown = await tearDown(scenario, { tolerant, moved: move?.errno === null }, observe);
  }
  if (subject.kind === 'close-only') await observe('after close');
  const afterTeardown = await teardownWork();

  const { destination } = scenario;
  if (runs && destination !== null) {
    await scenario.assignCompletions();
    await scenario.complete();
  }
  const rungAtDestination = await scenario.rungAtDestination();
  const guestEnd = (destination ?? scenario.source).threads.flatMap(({ end }) => (end === null ? [] : [end]));
  await destination?.stop();
  await destination?.close();
  const { image, ...rest } = options;
  return {
    subject,
    options: { ...rest, image: image.name },
    launch: launchOf(launched),
    move,
    teardown,
    teardownWork: afterTeardown,
    held,
    queues: runs ? scenario.queues() : [],
    rungAtDestination,
    guestEnd: guestEnd.filter(({ kind }) => kind !== 'stopped'),
    failedCalls: scenario.failedCalls,
    findings: await findings(),
  };
};

const launchOf = ({ digest, expectedDigest, measurementVerifies }: Launch): Row['launch'] => ({
  digest,
  asExpected: digest === expectedDigest,
  measurementVerifies,
});

const moveGuest = async (
  simkvm: SimKvm,
  scenario: Scenario,
  policy: PostMovePolicyName,
  observe: (point: string) => Promise<void>,
): Promise<Row['move']> => {
  await scenario.createDestination();
  await scenario.pause();
  const work = await startMeasuring(simkvm.host);
  const { errno, phases } = await scenario.move(policy);
  await observe('after move');
  await dismantled(simkvm, scenario.sourceId);
  const done = await work();
  const last = phases.at(-1);
  const counts = last?.phase === 'done' ? last.done.counts : {};
  if (errno === null) await scenario.resume();
  if (scenario.options.image.runs) await scenario.complete();
  return {
    errno,
    blackoutNs: Number(last?.simulatedNs ?? 0n),
    blackout: Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, Number(count)])),
    phases: phases.map(({ phase, simulatedNs }) => ({ phase, simulatedNs: Number(simulatedNs) })),
    work: done,
  };
};
