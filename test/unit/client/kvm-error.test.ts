import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { ERRNO, isErrno } from '../../../client/errno.js';
import { failedReply, KvmError } from '../../../client/kvm-error.js';
import { KvmVcpu, KvmVm } from '../../../gen/services.js';
import { ERRNO as KERNEL_ERRNO } from '../../../server/kernel/errno.js';
import { serviceError } from './fake-transport.js';

const moved = serviceError({
  code: status.FAILED_PRECONDITION,
  reason: 'VM_DEAD_MOVED',
  metadata: {
    errno: 'EIO',
    errno_number: '5',
    ioctl: 'KVM_IOEVENTFD',
    kernel_ref: 'kvm_vm_ioctl',
    object: 'vm 3',
    state: 'dead',
    death_cause: 'moved to VM 7 by pid 12',
    policy: 'VM_DEAD',
  },
});

describe('a refusal of the kernel', () => {
  const { error } = failedReply(moved, KvmVm.ioeventfd);

  it('tells errno, ioctl, reason, object and what killed it', () => {
    expect(error).toMatchObject({
      errno: 'EIO',
      ioctl: 'KVM_IOEVENTFD',
      reason: 'VM_DEAD_MOVED',
      kernelRef: 'kvm_vm_ioctl',
      object: 'vm 3',
      state: 'dead',
      policy: 'VM_DEAD',
      deathCause: { kind: 'moved', toVmId: 7, byPid: 12 },
      fwError: null,
      message: 'failed: VM_DEAD_MOVED',
    });
  });

  it('is the same error when it is made from itself, and from what grpc-js threw', () => {
    expect(KvmError.from(error)).toBe(error);
    expect(KvmError.from(moved)).toMatchObject({ errno: 'EIO', reason: 'VM_DEAD_MOVED' });
  });

  it('tells a bug from a move, and the firmware’s status', () => {
    const failure = { code: status.FAILED_PRECONDITION, reason: 'X', metadata: { errno: 'EIO', fw_error: '0x7' } };
    expect(KvmError.from(serviceError(failure)).fwError).toBe(7);
    const bugged = { ...failure, metadata: { errno: 'EIO', death_cause: 'bugged by KVM_BUG_ON(vcpu->run)' } };
    expect(KvmError.from(serviceError(bugged)).deathCause).toEqual({ kind: 'bugged', check: 'KVM_BUG_ON(vcpu->run)' });
  });

  it('carries what the kernel wrote all the same', () => {
    const value = KvmVcpu.run.responseSerialize({ ret: -1, run: { exit_reason: 39, memory_fault: { gpa: 0x5000n } } });
    const metadata = { errno: 'EFAULT', ioctl: 'KVM_RUN' };
    const thrown = serviceError({
      code: status.INVALID_ARGUMENT,
      metadata,
      attachment: { type_url: KvmVcpu.run.responseTypeUrl, value },
    });
    const { response } = failedReply(thrown, KvmVcpu.run);
    expect(response?.run?.memory_fault?.gpa).toBe(0x5000n);
  });

  it('has no response of another call', () => {
    const attachment = { type_url: KvmVcpu.getRegs.responseTypeUrl, value: Buffer.alloc(0) };
    const thrown = serviceError({ code: status.INVALID_ARGUMENT, metadata: { errno: 'EINVAL' }, attachment });
    expect(failedReply(thrown, KvmVcpu.run).response).toBeNull();
  });
});

describe('what is no answer of the kernel', () => {
  it('has no errno: a lost connection', () => {
    const { error } = failedReply(serviceError({ code: status.UNAVAILABLE }), KvmVm.ioeventfd);
    expect(error).toMatchObject({ errno: null, code: status.UNAVAILABLE, reason: 'UNAVAILABLE', ioctl: KvmVm.ioeventfd.path });
  });

  it.each([new TypeError('no'), 'text', null])('is wrapped, with its cause: %s', (thrown) => {
    const error = KvmError.from(thrown);
    expect(error).toBeInstanceOf(KvmError);
    expect(error).toMatchObject({ errno: null, reason: 'UNKNOWN', cause: thrown });
  });
});

describe('errno names', () => {
  it('are those that the kernel answers', () => {
    expect(ERRNO).toEqual(KERNEL_ERRNO);
  });

  it('are no names of Object', () => {
    expect(isErrno('toString')).toBe(false);
    expect(isErrno(undefined)).toBe(false);
  });
});
