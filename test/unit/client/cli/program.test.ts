import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { describeFailure, exitCodeOf } from '../../../../client/cli/failure.js';
import { runSimkvm } from '../../../helpers/run-simkvm.js';
import { serviceError } from '../fake-transport.js';

describe('the command line', () => {
  it.each([
    ['no command', []],
    ['an unknown command', ['frobnicate']],
    ['a VM that is no number', ['vm', 'show', 'x']],
    ['a target that is none', ['host', '--target', 'nowhere']],
  ])('that is wrong ends with 2 and says how it should be: %s', async (_what, args) => {
    const { out, error, code } = await runSimkvm(...args);
    expect(code).toBe(2);
    expect(out).toBe('');
    expect(error).not.toBe('');
  });

  it('shows its help, and ends with 0', async () => {
    const { out, code } = await runSimkvm('--help');
    expect(code).toBe(0);
    expect(out).toContain('--target');
  });

  it.each([
    ...['host', 'vms', 'vm show', 'migrate', 'certificates', 'lab', 'session create', 'secret seal'],
    ...['list', 'show', 'watch', 'cancel', 'post-copy', 'override', 'identity', 'allow'].map((name) => `migrations ${name}`),
    ...['verify', 'measurement', 'sev-report', 'platform'].map((name) => `attest ${name}`),
    ...['sev', 'sev-es', 'snp'].map((name) => `digest ${name}`),
  ])('shows the help of %s', async (words) => {
    const { out, code } = await runSimkvm(...words.split(' '), '--help');
    expect(code).toBe(0);
    expect(out.startsWith(`Usage: simkvm ${words} `)).toBe(true);
  });

  it('says which options may not be left out', async () => {
    const { out } = await runSimkvm('secret', 'seal', '--help');
    expect(out).toMatch(/--tek <file>[^-]*\(required\)/);
  });

  it('ends with 3 where no host answers, and says what to do', async () => {
    const { error, code } = await runSimkvm('vms', '--target', '127.0.0.1:1');
    expect(code).toBe(3);
    expect(error).toContain('no simkvmd answers at 127.0.0.1:1');
    expect(error).toContain('--target HOST:PORT');
  });
});

describe('a failure', () => {
  const failure = serviceError({
    code: status.FAILED_PRECONDITION,
    reason: 'VM_DEAD_MOVED',
    metadata: {
      errno: 'EIO',
      ioctl: 'KVM_IOEVENTFD',
      object: 'vm 3',
      state: 'dead',
      kernel_ref: 'kvm_vm_ioctl',
      policy: 'VM_DEAD',
      death_cause: 'moved to VM 7 by pid 12',
    },
  });

  it('is told with its reason, the object, the check and what to do', () => {
    expect(describeFailure(failure)).toBe(
      [
        'simkvm: failed: VM_DEAD_MOVED',
        '  reason:     VM_DEAD_MOVED',
        '  object:     vm 3',
        '  state:      dead',
        '  checked by: kvm_vm_ioctl',
        '  policy:     VM_DEAD',
        "  what to do: the VM's context is in VM 7 now; close this VM's descriptors, or choose another policy before a move",
      ].join('\n'),
    );
    expect(exitCodeOf(failure)).toBe(1);
  });

  it('that no kernel has answered has no reason but its own text', () => {
    expect(describeFailure(new Error('out of paper'))).toBe('simkvm: out of paper');
  });
});
