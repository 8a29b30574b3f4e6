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
/** Calls remembered for `Finding.history`. */
const HISTORY_MAX = 64;

/** What a call acted on and how it ended, for the history of findings. */
interface JournalEntry {
  readonly text: string;
  readonly vm: number | null;
}

/** The list of what went wrong on a host, and the recent calls that explain it. Ledgers report here; none knows a policy. */
export class Findings {
  private readonly list: Finding[] = [];
  private readonly journal: JournalEntry[] = [];
  /** Findings beyond the limit. */
  dropped = 0;

  get all(): readonly Finding[] {
    return this.list;
  }

  /** Notes a call on a VM (null: on none) so that later findings can tell what led to them. */
  note(text: string, vm: number | null): void {
    this.journal.push({ text, vm });
    if (this.journal.length > HISTORY_MAX * 16) this.journal.splice(0, HISTORY_MAX * 8);
  }

  report(domain: FindingDomain, kind: string, message: string, vm: number | null = null): void {
    if (this.list.length >= FINDINGS_MAX) {
      this.dropped++;
      return;
    }
    const related = this.journal.filter((entry) => vm === null || entry.vm === null || entry.vm === vm);
    const history = related.slice(-HISTORY_MAX).map((entry) => entry.text);
    this.list.push({ domain, kind, message, vm, call: history.at(-1) ?? 'none', history });
  }
}
