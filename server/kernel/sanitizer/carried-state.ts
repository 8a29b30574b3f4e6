import type { CpuState } from '../../hardware/cpu/state.js';
import type { SegmentName } from '../../hardware/cpu/types.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { Vm } from '../kvm/vm.js';
import { IOCTL, ioctlName } from '../uapi/ioctls.js';
import type { Findings } from './findings.js';

const SEGMENTS: readonly SegmentName[] = ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'tr', 'ldt'];

/** The vCPU ioctls that report what a guest's CPU is or holds. */
const REPORTS: ReadonlySet<number> = new Set([
  IOCTL.KVM_GET_REGS,
  IOCTL.KVM_GET_SREGS,
  IOCTL.KVM_GET_SREGS2,
  IOCTL.KVM_GET_MSRS,
  IOCTL.KVM_GET_FPU,
  IOCTL.KVM_GET_LAPIC,
  IOCTL.KVM_GET_CPUID2,
  IOCTL.KVM_GET_VCPU_EVENTS,
  IOCTL.KVM_GET_DEBUGREGS,
  IOCTL.KVM_GET_XSAVE,
  IOCTL.KVM_GET_XSAVE2,
  IOCTL.KVM_GET_XCRS,
]);

/** What has to be equal when the guest goes on elsewhere. */
type Registers = ReadonlyMap<string, bigint | number>;

const registersOf = (state: CpuState): Registers => {
  const found = new Map<string, bigint | number>(Object.entries(state.getRegisters()));
  found.set('cr0', state.cr0).set('cr3', state.cr3).set('cr4', state.cr4).set('efer', state.efer);
  for (const table of ['gdt', 'idt'] as const) {
    found.set(`${table}.base`, state.table(table).base).set(`${table}.limit`, state.table(table).limit);
  }
  for (const name of SEGMENTS) {
    const { base, limit, selector } = state.segment(name);
    found.set(`${name}.base`, base).set(`${name}.limit`, limit).set(`${name}.selector`, selector);
  }
  return found;
};

/**
 * What a move leaves to the VMM: registers of guests whose state is not protected, and I/O in flight. A result that is
 * lost, a stale value that is reported, a wrong value that the guest goes on with: all of them are the guest's harm.
 */
export class CarriedState {
  /** vCPUs of VMs that had a guest which has moved away, and where it went. */
  private readonly stale = new WeakMap<Vcpu, { readonly to: number; readonly protected: boolean }>();
  /** vCPUs with which a moved guest goes on, and the registers that it had. Checked once, at the next entry. */
  private readonly expected = new WeakMap<Vcpu, Registers>();

  constructor(private readonly findings: Findings) {}

  /**
   * A context moves, and its vCPUs are still as they were.
   * @param isProtected whether a vCPU's registers travel in its save area
   */
  moving(source: Vm, destination: Vm, isProtected: (vcpu: Vcpu) => boolean): void {
    for (const vcpu of destination.vcpus) this.stale.delete(vcpu);
    for (const vcpu of source.vcpus) {
      const guarded = isProtected(vcpu);
      this.checkInFlight(vcpu, destination);
      this.stale.set(vcpu, { to: destination.id, protected: guarded });
      // A vCPU that never entered since the last move still owes the guest that move's registers.
      const registers = this.expected.get(vcpu) ?? registersOf(vcpu.arch.state);
      this.expected.delete(vcpu);
      const successor = destination.vcpus.find((other) => other.id === vcpu.id);
      if (successor !== undefined && !guarded) this.expected.set(successor, registers);
    }
  }

  /** A vCPU enters the guest. */
  entered(vcpu: Vcpu): void {
    const expected = this.expected.get(vcpu);
    if (expected === undefined) return;
    this.expected.delete(vcpu);
    const actual = registersOf(vcpu.arch.state);
    const different = [...expected].filter(([name, value]) => actual.get(name) !== value).map(([name]) => name);
    if (different.length === 0) return;
    const { id, vm } = vcpu;
    this.findings.report(
      'guest',
      'REGISTERS_NOT_THE_GUESTS',
      `vcpu ${id} of vm ${vm.id} goes on with other values than the guest had in ${different.join(', ')}`,
      vm.id,
    );
  }

  /** A vCPU ioctl has succeeded and has told userspace something. */
  reported(vcpu: Vcpu, request: number): void {
    if (!REPORTS.has(request)) return;
    this.checkHidden(vcpu, request);
    const stale = this.stale.get(vcpu);
    if (stale === undefined) return;
    const note = stale.protected ? ' (meaningless since the launch: the state was protected)' : '';
    this.findings.report(
      'guest',
      'STALE_REGISTERS_REPORTED',
      `${ioctlName(request, 'vcpu')} on vcpu ${vcpu.id} of vm ${vcpu.vm.id} reports values of a guest that moved to vm ${stale.to}${note}`,
      vcpu.vm.id,
    );
  }

  /** Registers that live in an encrypted save area must be nobody's but the guest's. */
  private checkHidden({ id, vm, arch }: Vcpu, request: number): void {
    if (!vm.kernel.ops.guestStateProtected(arch.vcpu) || arch.state !== arch.cpu.state) return;
    const call = ioctlName(request, 'vcpu');
    this.findings.report(
      'guest',
      'PLAINTEXT_VISIBLE',
      `${call} shows the encrypted registers of vcpu ${id} of vm ${vm.id}`,
      vm.id,
    );
  }

  /** An exit that userspace has not completed stays behind, with its result. */
  private checkInFlight({ id, vm, arch }: Vcpu, destination: Vm): void {
    const { completion } = arch;
    if (!completion?.wantsData) return;
    this.findings.report(
      'guest',
      'IO_RESULT_LOST',
      `vcpu ${id} of vm ${vm.id} waits for the result of a ${completion.kind}, which does not move to vm ${destination.id}`,
      vm.id,
    );
  }
}
