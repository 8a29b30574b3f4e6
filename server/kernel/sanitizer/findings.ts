/** Whose safety a finding is about: the kernel's own, or the guest's. */
export type FindingDomain = 'kernel' | 'guest';

export interface Finding {
  readonly domain: FindingDomain;
  /** SCREAMING_SNAKE_CASE, for example `ASID_REUSED_WITHOUT_FLUSH`. */
  readonly kind: string;
  /** What happened, to which object, in one sentence. */
  readonly message: string;
  /** The VM it is about, if any. */
  readonly vm: number | null;
  /** The call that caused it. */
  readonly call: string;
  /** The calls on the same objects that led to it, oldest first. */
  readonly history: readonly string[];
}

/** Most findings that a host keeps; more are only counted. */
const FINDINGS_MAX = 4096;
/** Calls that `Finding.history` has at most. */
const HISTORY_MAX = 64;
/** Calls remembered: those of all VMs, of which one finding concerns only some. */
const JOURNAL_FACTOR = 16;
const JOURNAL_MAX = 2 * HISTORY_MAX * JOURNAL_FACTOR;

/** A call that has begun: on which VM, if on one, and how it is described should a finding name it. */
export interface JournalEntry {
  readonly vm: number | null;
  /** For example `pid 101: KVM_GET_REGS on vcpu 0 of vm 3`. Asked for only by findings. */
  describe(): string;
}

/** The list of what went wrong on a host, and the recent calls that explain it. Ledgers report here; none knows a policy. */
export class Findings {
  private readonly list: Finding[] = [];
  private journal: JournalEntry[] = [];
  /** Findings beyond the limit. */
  dropped = 0;
  /** The call under way, to which a finding is put down; null between calls. */
  currentCall: () => JournalEntry | null = () => null;

  get all(): readonly Finding[] {
    return this.list;
  }

  /** Notes a call so that later findings can tell what led to them. */
  note(entry: JournalEntry): void {
    this.journal.push(entry);
    if (this.journal.length > JOURNAL_MAX) this.journal = this.journal.slice(-HISTORY_MAX * JOURNAL_FACTOR);
  }

  /** @param vm the VM that it is about, whose calls are its history; null: everybody's */
  report(domain: FindingDomain, kind: string, message: string, vm: number | null = null): void {
    if (this.list.length >= FINDINGS_MAX) {
      this.dropped++;
      return;
    }
    const related = this.journal.filter((entry) => vm === null || entry.vm === null || entry.vm === vm);
    const history = related.slice(-HISTORY_MAX).map((entry) => entry.describe());
    const call = this.currentCall()?.describe() ?? history.at(-1) ?? 'none';
    this.list.push({ domain, kind, message, vm, call, history });
  }
}
