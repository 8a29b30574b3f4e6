import { POST_MOVE_POLICIES, type PostMovePolicyName, type SimKvm } from '../index.js';
import { type Row, runRow, type Subject } from './experiment.js';
import type { GuestImage } from './guest/image.js';
import { sevEsGuest } from './guest/sev-es-guest.js';
import { sevGuest } from './guest/sev-guest.js';
import { type MatrixRow, observeMatrix } from './ioctl-matrix.js';
import { inLanes } from './lanes.js';
import { PROBE_TIMES, type ProbeResult, probesOf } from './probes.js';
import { type Ranking, rankByBlackout } from './ranking.js';
import { IRQFD_ORDERS, type ScenarioOptions } from './scenario.js';
import type { Encryption } from './vmm/vmm.js';

const ENCRYPTIONS = ['SEV', 'SEV-ES'] as const satisfies readonly Encryption[];
/** A probe looks at calls, not at amounts: its guests are small. */
const PROBE_MEMORY_BYTES = 8 * 2 ** 20;

export interface LabOptions {
  /** Guest memory of the main experiment, in bytes. */
  readonly memoryBytes: number;
  readonly policies: readonly PostMovePolicyName[];
  /** Every variant for every policy, and every probe for both kinds of guest and both times. */
  readonly full: boolean;
  /** A firmware image to launch in place of the built-in guests. It is moved and torn down, and not run: no probes. */
  readonly image: GuestImage | null;
}

/** All that the lab has seen. */
export interface LabReport {
  readonly rows: readonly Row[];
  /** The same experiment set up otherwise: other orders of irqfds, private memory, VMs of the types SEV and SEV-ES. */
  readonly variants: readonly Row[];
  readonly probes: readonly ProbeResult[];
  readonly matrix: Readonly<Partial<Record<Encryption, readonly MatrixRow[]>>>;
  readonly ranking: Readonly<Partial<Record<Encryption, Ranking>>>;
}

/** Told of everything that is done: what, and how much of it. */
export type Progress = (stage: string, done: number, of: number) => void;

const builtIn = (encryption: Encryption): GuestImage => (encryption === 'SEV' ? sevGuest() : sevEsGuest());

const optionsFor = (encryption: Encryption, { memoryBytes, image }: LabOptions): ScenarioOptions => ({
  ...{ encryption, memoryBytes, image: image ?? builtIn(encryption) },
  ...{ vmType: 'DEFAULT', backing: 'shared-memfd', irqfdOrder: 'fresh-eventfds' },
});

const subjectsOf = (policies: readonly PostMovePolicyName[]): readonly Subject[] => [
  { kind: 'teardown-without-move' },
  { kind: 'close-only' },
  ...policies.flatMap((policy) => [false, true].map((tolerant) => ({ kind: 'move', policy, tolerant }) as const)),
];

const variantsOf = (options: ScenarioOptions): readonly ScenarioOptions[] => [
  ...IRQFD_ORDERS.filter((irqfdOrder) => irqfdOrder !== options.irqfdOrder).map((irqfdOrder) => ({ ...options, irqfdOrder })),
  { ...options, backing: 'private-anonymous' },
  { ...options, vmType: 'SEV' },
];

type PendingRow = { readonly options: ScenarioOptions; readonly subject: Subject };

/**
 * Runs the lab. Costs are counted for a host as a whole, so that the rows of the main experiment have a host to themselves,
 * one after the other; kinds of guests are spread over the hosts.
 */
export const runLab = async (hosts: readonly SimKvm[], options: LabOptions, progress: Progress): Promise<LabReport> => {
  const { policies, full, image } = options;
  const rows = await runRows(hosts, 'experiment', progress, (encryption) =>
    subjectsOf(policies).map((subject) => ({ options: optionsFor(encryption, options), subject })),
  );
  const ranking = Object.fromEntries(
    ENCRYPTIONS.map((encryption) => [
      encryption,
      rankByBlackout(rows.filter((row) => row.options.encryption === encryption && !isTolerant(row.subject))),
    ]),
  );
  if (image !== null) return { rows, variants: [], probes: [], matrix: {}, ranking };

  const variantPolicies = full ? policies : policies.slice(0, 1);
  const small = { ...options, memoryBytes: PROBE_MEMORY_BYTES };
  const variants = await runRows(hosts, 'variants', progress, (encryption) =>
    variantsOf(optionsFor(encryption, small)).flatMap((variant) =>
      variantPolicies.map((policy) => ({ options: variant, subject: { kind: 'move', policy, tolerant: true } })),
    ),
  );
  const probes = await runProbes(hosts, small, progress);
  const matrix: Partial<Record<Encryption, readonly MatrixRow[]>> = {};
  let columns = 0;
  for (const encryption of full ? ENCRYPTIONS : ENCRYPTIONS.slice(0, 1))
    matrix[encryption] = await observeMatrix(hosts, optionsFor(encryption, small), policies, (total) =>
      progress('ioctls', ++columns, total * (full ? ENCRYPTIONS.length : 1)),
    );
  return { rows, variants, probes, matrix, ranking };
};

const isTolerant = (subject: Subject): boolean => subject.kind === 'move' && subject.tolerant;

/** Rows of each kind of guest one after the other, on a host that does nothing else meanwhile. */
const runRows = async (
  hosts: readonly SimKvm[],
  stage: string,
  progress: Progress,
  pending: (encryption: Encryption) => readonly PendingRow[],
): Promise<Row[]> => {
  const queues = ENCRYPTIONS.map(pending);
  const total = queues.reduce((sum, queue) => sum + queue.length, 0);
  const results: Row[][] = queues.map(() => []);
  let done = 0;
  await Promise.all(
    hosts.map(async (simkvm, host) => {
      for (const [index, queue] of queues.entries()) {
        if (index % hosts.length !== host) continue;
        for (const { options, subject } of queue) {
          results[index]?.push(await runRow(simkvm, options, subject));
          progress(stage, ++done, total);
        }
      }
    }),
  );
  return results.flat();
};

const runProbes = (hosts: readonly SimKvm[], options: LabOptions, progress: Progress): Promise<ProbeResult[]> => {
  const { full, policies } = options;
  const pending = (full ? ENCRYPTIONS : ENCRYPTIONS.slice(0, 1)).flatMap((encryption) =>
    policies.flatMap((policy) => probesOf(optionsFor(encryption, options), policy, full ? PROBE_TIMES : PROBE_TIMES.slice(0, 1))),
  );
  let done = 0;
  return inLanes(
    hosts,
    pending.map((probe) => async (simkvm: SimKvm) => {
      const result = await probe(simkvm);
      progress('probes', ++done, pending.length);
      return result;
    }),
  );
};

/** What the lab does unless told otherwise. */
export const DEFAULT_LAB: LabOptions = { memoryBytes: 32 * 2 ** 20, policies: POST_MOVE_POLICIES, full: false, image: null };
