import type { SecureProcessor } from '../../hardware/amd/secure-processor.js';
import type { Asid } from '../../hardware/units.js';
import type { KmemOwner } from '../kmem.js';
import type { Vm } from '../kvm/vm.js';
import type { Findings } from './findings.js';

const describe = (byType: ReadonlyMap<string, number>): string =>
  [...byType].map(([type, bytes]) => `${type} ${bytes}`).join(', ');

/** What is still there when nothing can reach it: kernel memory of destroyed VMs, contexts of the secure processor. */
export class Leaks {
  /** Owners of destroyed VMs to which something is still charged; it may hang on a VM that lives. */
  private owing: KmemOwner[] = [];
  private checkDue = false;

  constructor(
    private readonly findings: Findings,
    private readonly processor: SecureProcessor | null,
  ) {}

  /** A VM's last reference is gone and its destruction is over. */
  destroyed(vm: Vm): void {
    const { kmem } = vm;
    if (kmem.reachableBytes > 0)
      this.findings.report('kernel', 'KMEM_LEAKED', `vm ${vm.id} left ${describe(kmem.reachableByType)} bytes behind`, vm.id);
    else if (kmem.chargedBytes > 0) this.owing.push(kmem);
    this.checkDue = true;
  }

  /** A call is over. @param vms how many VMs there are */
  callEnded(vms: number): void {
    if (!this.checkDue || vms > 0) return;
    this.checkDue = false;
    for (const kmem of this.owing)
      if (kmem.chargedBytes > 0)
        this.findings.report('kernel', 'KMEM_LEAKED', `${describe(kmem.chargedByType)} bytes stay charged to ${kmem.name}`);
    this.owing = [];
    for (const { handle, state, asid } of this.processor?.guests() ?? []) this.contextLeaked(`guest ${handle}`, state, asid);
    for (const { page, state, asid } of this.processor?.snpGuests() ?? [])
      this.contextLeaked(`a SEV-SNP guest with its context in frame ${page}`, state, asid);
  }

  private contextLeaked(guest: string, state: string, asid: Asid | null): void {
    this.findings.report(
      'kernel',
      'FIRMWARE_CONTEXT_LEAKED',
      `no VM is left, but the secure processor has ${guest} (${state}, ASID ${asid ?? 'none'})`,
    );
  }
}
