import { Failure, failed, type Result } from '../kernel/failure.js';
import type { EventFd } from '../kernel/fs/eventfd.js';
import { CpuThrottle } from '../kernel/kvm/cpu-throttle.js';
import { markSent } from '../kernel/kvm/sent.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { VmPause } from '../kernel/kvm/vm-pause.js';
import { BatchRoom } from './batch-room.js';
import { describeGuest, describeWiring, kindOf, whyNotAsDescribed, whyNotSent } from './describe.js';
import type { SourceGuest } from './guest.js';
import { HeldPages } from './held-pages.js';
import { KINDS } from './kinds.js';
import { OwedPages } from './owed-pages.js';
import { encodeParts } from './state-parts.js';
import { encodeWiring } from './wiring.js';

/** Why such a guest cannot be handed over before all of it has arrived; null: it can. EINVAL. */
export const whyNoPostCopy = (vm: Vm): Failure | null => {
  const kind = KINDS[kindOf(vm)];
  if (kind.whyNoPostCopy === null) return null;
  return new Failure('EINVAL', 'POST_COPY_NOT_FOR_ENCRYPTED', 'server/migration', {
    field: 'limits.post_copy',
    object: `vm ${vm.id}`,
    guest: kind.name,
    why: kind.whyNoPostCopy,
  });
};

/**
 * Whether the guest's platform would send it to another one (NOSEND, domain, API version, a launch that is not over): it is
 * asked, and what it has begun is taken back at once.
 * @param target what is known of that platform; null: it is like this one
 */
export const whyTargetRefused = (vm: Vm, target: Uint8Array | null): Failure | null => {
  const kind = KINDS[kindOf(vm)];
  const known = target ?? kind.target(vm.kernel);
  if (failed(known)) return known;
  const source = kind.source(vm);
  const opening = source.begin(known);
  if (failed(opening)) return opening;
  source.cancel();
  return null;
};

/** What has been done to a VM on its way out, so that it can be taken back. */
interface Progress {
  begun: boolean;
  fenced: boolean;
  /** Events of irqfds that the state of the guest carries. */
  carried: readonly { readonly eventfd: EventFd; readonly count: bigint }[];
  owed: OwedPages | null;
  pause: VmPause | null;
}

/**
 * A VM of this host as the protocol's source. The session holds a reference on it until `resume` or `finish`.
 * @param session number of the migration, for the VM's death cause
 */
export const createSourceGuest = (vm: Vm, session: string): Result<SourceGuest> => {
  const refused = whyNotSent(vm);
  if (refused !== null) return refused;
  const description = describeGuest(vm);
  if (failed(description)) return description;
  const cpuids = vm.vcpus.map(({ arch }) => arch.cpuid);
  const kind = KINDS[kindOf(vm)];
  const source = kind.source(vm.get());
  // Not only from `begin` on: two that ask two destinations at the same time would both be told yes.
  vm.migration = session;
  const { kernel } = vm;
  const done: Progress = { begun: false, fenced: false, carried: [], owed: null, pause: null };
  const room = new BatchRoom();
  const letGo = (): void => {
    done.owed?.end();
    vm.migration = null;
    CpuThrottle.end(vm);
    kernel.work(`end of migration ${session}`, (current) => vm.put(current));
  };

  return {
    describe: () => description,
    begin: (target) => {
      const opening = source.begin(target);
      if (failed(opening)) return opening;
      done.begun = true;
      done.owed = new OwedPages(vm);
      return opening;
    },
    next: (pages) => {
      const batch = done.owed === null ? null : source.seal(done.owed, pages, room);
      // What is owed and cannot be read may well be what the VMM has taken away.
      return failed(batch) ? (whyNotAsDescribed(vm, description, cpuids) ?? batch) : batch;
    },
    nextRound: () => done.owed?.nextRound() ?? 0,
    throttle: (percent) => {
      vm.arch.throttle = new CpuThrottle(percent);
    },
    stop: (stopped) => {
      done.pause = VmPause.begin(vm, () => stopped(null));
    },
    get waitsFor() {
      return done.pause?.waitsFor ?? null;
    },
    hold: () => {
      const unfit = whyNoPostCopy(vm);
      if (unfit !== null) return unfit;
      if (done.owed === null) throw new Error('nothing has been begun');
      return HeldPages.hold(vm, done.owed, room);
    },
    state: () => {
      const changed = whyNotAsDescribed(vm, description, cpuids);
      if (changed !== null) return changed;
      // What they would raise after the irqchip has been read would be raised nowhere.
      vm.irqfds.suspend();
      const parts = source.state();
      if (failed(parts)) return parts;
      done.carried = [...vm.irqfds].map(({ eventfd, untaken }) => ({ eventfd, count: untaken }));
      return encodeParts([...parts, ...encodeWiring(describeWiring(vm, true))]);
    },
    fence: () => {
      const failure = source.fence();
      done.fenced = failure === null;
      return failure;
    },
    resume: () => {
      if (done.fenced) source.unfence();
      if (done.begun) source.cancel();
      vm.irqfds.resume();
      done.pause?.release();
      letGo();
    },
    finish: () => {
      source.finish();
      for (const { eventfd, count } of done.carried) eventfd.withdraw(count);
      done.pause?.release((current) => markSent(current, vm, session, kind.runsWithoutKey));
      letGo();
    },
  };
};
