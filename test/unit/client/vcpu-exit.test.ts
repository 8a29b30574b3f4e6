import { describe, expect, it } from 'vitest';
import { exitOf } from '../../../client/vcpu-exit.js';
import { KvmExit, KvmRun, type KvmRunInit } from '../../../gen/messages.js';

/** kvm_run as it comes over the wire. */
const runOf = (run: KvmRunInit): KvmRun => KvmRun.decode(KvmRun.encode(run).finish());

/** What each reason has in the union, with one value that tells it apart. */
const WITH_DATA = [
  ['KVM_EXIT_EXCEPTION', { ex: { exception: 13 } }],
  ['KVM_EXIT_IO', { io: { port: 0x3f8, size: 1, count: 1 } }],
  ['KVM_EXIT_HYPERCALL', { hypercall: { nr: 12n } }],
  ['KVM_EXIT_DEBUG', { debug: { pc: 0x1000n } }],
  ['KVM_EXIT_MMIO', { mmio: { phys_addr: 0xfe00_1000n, len: 4 } }],
  ['KVM_EXIT_FAIL_ENTRY', { fail_entry: { cpu: 3 } }],
  ['KVM_EXIT_TPR_ACCESS', { tpr_access: { rip: 5n } }],
  ['KVM_EXIT_INTERNAL_ERROR', { internal: { suberror: 3 } }],
  ['KVM_EXIT_INTERNAL_ERROR', { emulation_failure: { insn_size: 2 } }],
  ['KVM_EXIT_SYSTEM_EVENT', { system_event: { type: 6 } }],
  ['KVM_EXIT_IOAPIC_EOI', { eoi: { vector: 0x30 } }],
  ['KVM_EXIT_X86_RDMSR', { msr: { index: 0x10 } }],
  ['KVM_EXIT_X86_WRMSR', { msr: { index: 0x10 } }],
  ['KVM_EXIT_NOTIFY', { notify: { flags: 1 } }],
  ['KVM_EXIT_MEMORY_FAULT', { memory_fault: { gpa: 0x5000n } }],
  ['KVM_EXIT_SNP_REQ_CERTS', { snp_req_certs: { gpa: 0x6000n, npages: 4n } }],
] as const satisfies readonly (readonly [keyof typeof KvmExit, KvmRunInit])[];

describe('an exit of a vCPU', () => {
  it.each(WITH_DATA)('%s has the member of the union that it names: %o', (reason, data) => {
    expect(exitOf(runOf({ exit_reason: KvmExit[reason], ...data }))).toMatchObject({ reason, ...data });
  });

  it('has no more than its reason where that says all', () => {
    const exit = exitOf(runOf({ exit_reason: KvmExit.KVM_EXIT_HLT, cr8: 3n }));
    expect(exit.reason).toBe('KVM_EXIT_HLT');
    expect(Object.keys(exit).sort()).toEqual(['reason', 'run']);
    expect(exit.run.cr8).toBe(3n);
  });

  it('is named for every reason of the contract', () => {
    for (const [reason, number] of Object.entries(KvmExit)) {
      if (typeof number !== 'number') continue;
      const members = WITH_DATA.filter(([name]) => name === reason).map(([, member]) => member);
      expect(exitOf(runOf({ exit_reason: number, ...(members[0] ?? {}) })).reason).toBe(reason);
    }
  });

  it('is unknown, with what the hardware said, if KVM does not know it; nothing yet, before the first', () => {
    expect(exitOf(runOf({ exit_reason: 0, hw: { hardware_exit_reason: 0x7fn } }))).toMatchObject({
      reason: 'KVM_EXIT_UNKNOWN',
      hw: { hardware_exit_reason: 0x7fn },
    });
    expect(exitOf(runOf({}))).toMatchObject({ reason: 'KVM_EXIT_UNKNOWN', hw: null });
  });

  it('is an error where the host leaves out what the reason promises', () => {
    expect(() => exitOf(runOf({ exit_reason: KvmExit.KVM_EXIT_IO }))).toThrow('without io');
  });
});
