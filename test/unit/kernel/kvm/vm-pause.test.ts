import { describe, expect, it } from 'vitest';
import { VmPause } from '../../../../server/kernel/kvm/vm-pause.js';
import { WaitQueue } from '../../../../server/kernel/sched/wait.js';
import { KVM_EXIT } from '../../../../server/kernel/uapi/constants.js';
import { CODE, Guest } from './x86/guest.js';

/** `in al, 0x10; mov bl, al; hlt`. */
const READS_PORT = 'e410 88c3 f4';
/** `out 0x10, al; hlt`. */
const WRITES_PORT = 'e610 f4';

/** A guest whose vCPU has left KVM_RUN for its first exit. */
const exited = (program: string): Guest => {
  const guest = new Guest().program(program);
  expect(guest.run().reason).toBe(KVM_EXIT.IO);
  return guest;
};

/** Begins a pause, and lets all tasks run as far as they can. */
const pause = (guest: Guest): { readonly paused: VmPause; readonly isHeld: () => boolean } => {
  let held = false;
  const paused = VmPause.begin(guest.vm, () => {
    held = true;
  });
  while (guest.kernel.scheduler.run(1));
  return { paused, isHeld: () => held };
};

const release = (guest: Guest, paused: VmPause): void => {
  paused.release();
  while (guest.kernel.scheduler.run(1));
};

describe('a paused VM', () => {
  it('is held at once where its last exit was a write, which its VMM has been told of', () => {
    const guest = exited(WRITES_PORT);
    const { paused, isHeld } = pause(guest);
    expect(isHeld()).toBe(true);
    expect(paused.waitsFor).toBeNull();
    release(guest, paused);
    expect(guest.regs.rip).toBe(BigInt(CODE + 2));
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
  });

  it('is not held as long as its VMM owes the guest an answer, and says so', () => {
    const guest = exited(READS_PORT);
    const { paused, isHeld } = pause(guest);
    expect(isHeld()).toBe(false);
    expect(paused.waitsFor).toMatch(/^the VMM: vcpu 0 has left KVM_RUN \(pio-in\)/);
    guest.vcpu.runPages.pio.bytes[0] = 0x5a;
    expect(guest.run().errno).toBe('EINTR');
    expect(isHeld()).toBe(true);
    release(guest, paused);
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rbx).toBe(0x5an);
  });

  it('goes on when the pause is given up while a call on a vCPU is waited for, whatever its VMM still owes', () => {
    const guest = exited(READS_PORT);
    const end = new WaitQueue();
    guest.process.start(function* (current) {
      yield* guest.vcpu.mutex.lock(current);
      yield { kind: 'uninterruptible', queue: end, site: 'test' };
      guest.vcpu.mutex.unlock(current);
    });
    const { paused, isHeld } = pause(guest);
    release(guest, paused);
    end.wakeAll();
    while (guest.kernel.scheduler.run(1));
    expect(isHeld()).toBe(false);
    expect(guest.vm.pause).toBeNull();
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
  });
});
