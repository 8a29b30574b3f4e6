import type { AsidKeys } from '../../hardware/amd/asid-keys.js';
import type { Asid } from '../../hardware/units.js';
import type { Vm } from '../kvm/vm.js';
import type { Findings } from './findings.js';

/** An encryption context as the ledgers follow it: it has one owner at a time, and registered mirrors. */
export class ContextToken {
  constructor(
    /** The VM that has the context now; null once it is gone. */
    public owner: Vm | null,
    readonly asid: Asid,
  ) {}
}

/**
 * Who has which ASID. An ASID belongs to one VM at a time, and to registered mirrors of that VM; it is handed out again
 * only after its flush.
 */
export class EncryptionContexts {
  private readonly tokens = new Map<Vm, ContextToken>();

  constructor(
    private readonly findings: Findings,
    /** Null on an Intel host. */
    private readonly keys: AsidKeys | null,
  ) {}

  /** The allocator hands out an ASID: no key may be in its slot, and no cache may hold lines that are tagged with it. */
  asidAllocated(id: Asid): void {
    if (this.keys === null) return;
    if (this.keys.keyOf(id) !== null)
      this.findings.report('kernel', 'ASID_REUSED_IN_USE', `ASID ${id} was handed out while a guest's key is in its slot`);
    // One that has had no guest is flushed with the platform's INIT, which may come after it has been handed out.
    if (this.keys.isStale(id))
      this.findings.report('kernel', 'ASID_REUSED_WITHOUT_FLUSH', `ASID ${id} was handed out again without WBINVD and DF_FLUSH`);
  }

  /** The kernel gives an ASID up. A guest's key that is still in its slot belongs to a context that nobody knows any more. */
  asidFreed(id: Asid): void {
    if (this.keys === null || this.keys.keyOf(id) === null) return;
    this.findings.report('kernel', 'ASID_FREED_WHILE_BOUND', `ASID ${id} was freed while a guest's context is bound to it`);
  }

  /** A VM has become an encrypted guest. */
  bound(vm: Vm, id: Asid): void {
    for (const [other, token] of this.tokens)
      if (token.asid === id && token.owner === other && other !== vm) this.reportTwoOwners(id, other, vm);
    this.tokens.set(vm, new ContextToken(vm, id));
  }

  /** A context has moved, with everything that is encrypted under it. */
  moved(source: Vm, destination: Vm): void {
    const token = this.tokens.get(source);
    if (token === undefined) return;
    token.owner = destination;
    this.tokens.set(destination, token);
    this.tokens.delete(source);
  }

  /** After a move: what the kernel's own records say must be what has been followed here. */
  verify(vms: Iterable<Vm>): void {
    const owners = new Map<Asid, Vm>();
    for (const vm of vms) {
      const { sev } = vm.arch;
      if (sev === null || !sev.active || sev.encContextOwner !== null) continue;
      const other = owners.get(sev.asid);
      if (other !== undefined) this.reportTwoOwners(sev.asid, other, vm);
      owners.set(sev.asid, vm);
    }
  }

  /** A VM's context has been destroyed with it. */
  unbound(vm: Vm): void {
    const token = this.tokens.get(vm);
    if (token === undefined) return;
    token.owner = null;
    this.tokens.delete(vm);
  }

  /** The context that a VM has, its own or the one that it mirrors. */
  tokenOf(vm: Vm): ContextToken | null {
    const owner = vm.arch.sev?.encContextOwner ?? vm;
    return this.tokens.get(owner) ?? null;
  }

  /** Nothing on this host is encrypted. */
  get empty(): boolean {
    return this.tokens.size === 0;
  }

  private reportTwoOwners(id: Asid, first: Vm, second: Vm): void {
    const both = `vm ${first.id} and vm ${second.id}`;
    this.findings.report('kernel', 'ASID_TWO_OWNERS', `ASID ${id} belongs to ${both}, and neither mirrors the other`, second.id);
    if (first.arch.sev?.handle === second.arch.sev?.handle)
      this.findings.report('guest', 'TWO_RUNNABLE_COPIES', `the guest behind ASID ${id} can run in ${both}`, second.id);
  }
}
