import type { Rmp } from '../../hardware/amd/rmp.js';
import type { MappedPage, MemoryAccess } from '../../hardware/cpu/types.js';
import type { Frame } from '../../hardware/dram.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { AddressSpace } from '../mm/address-space.js';
import type { ContextToken, EncryptionContexts } from './encryption-contexts.js';
import type { Findings } from './findings.js';

/**
 * Which frames hold the memory of which encrypted guest. That another VM maps such a frame is no finding, nor that it
 * zaps its own mapping: a finding is an access through it, or a frame that leaves its owner behind its back.
 */
export class GuestFrames {
  private readonly owners = new Map<Frame, ContextToken>();
  /** Reported since the last call began, so that a loop in a guest is one finding. */
  private readonly reported = new Set<string>();

  constructor(
    private readonly findings: Findings,
    private readonly contexts: EncryptionContexts,
    /** Null on an Intel host. */
    private readonly rmp: Rmp | null,
  ) {}

  /** A frame has been encrypted, or accessed, under the key of a VM's context. */
  encrypted(frame: Frame, token: ContextToken): void {
    this.owners.set(frame, token);
  }

  /** A vCPU gets a translation and uses it at once. */
  accessed({ vm, id }: Vcpu, { frame, key }: MappedPage, access: MemoryAccess): void {
    if (this.contexts.empty && this.owners.size === 0) return;
    const own = this.contexts.tokenOf(vm);
    if (key !== null && own !== null) this.encrypted(frame, own);
    const owner = this.owners.get(frame)?.owner ?? null;
    if (owner === null || this.owners.get(frame) === own) return;
    const what = access === 'write' ? 'writes' : access === 'read' ? 'reads' : 'executes';
    const once = `${vm.id} ${what}`;
    if (this.reported.has(once)) return;
    this.reported.add(once);
    const message = `vcpu ${id} of vm ${vm.id} ${what} frame ${frame.pfn}, which holds memory of the guest in vm ${owner.id}`;
    this.findings.report('guest', access === 'write' ? 'FOREIGN_WRITE' : 'FOREIGN_READ', message, vm.id);
  }

  /** The host replaces a page of an address space by a copy: what is encrypted for the old address becomes garbage. */
  copied(from: Frame, mm: AddressSpace): void {
    const owner = this.owners.get(from)?.owner ?? null;
    if (owner === null || owner.mm !== mm) return;
    this.findings.report(
      'guest',
      'ENCRYPTED_PAGE_MOVED',
      `the host copied frame ${from.pfn} of the guest in vm ${owner.id}; the copy decrypts to garbage at its new address`,
      owner.id,
    );
  }

  /** A frame goes back to the host. Lines that are dirty under a guest's key would be written over its next content. */
  freed(frame: Frame): void {
    const owner = this.owners.get(frame)?.owner ?? null;
    this.owners.delete(frame);
    if (this.rmp?.isActive === true && this.rmp.entry(frame.pfn).assigned)
      this.findings.report(
        'kernel',
        'FRAME_FREED_WHILE_ASSIGNED',
        `frame ${frame.pfn} was freed while the reverse map has it as ${this.rmp.state(frame.pfn)}`,
        owner?.id ?? null,
      );
    const key = frame.dirtyUnder;
    if (key === null) return;
    this.findings.report(
      'kernel',
      'FRAME_FREED_WITHOUT_WRITEBACK',
      `frame ${frame.pfn} was freed with cache lines dirty under ${key.name}`,
      owner?.id ?? null,
    );
  }

  /** A new call begins. */
  callBegins(): void {
    // Clearing makes a new table, also of a set that is empty.
    if (this.reported.size > 0) this.reported.clear();
  }
}
