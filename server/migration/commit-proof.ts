import type { Link } from './link.js';
import type { Frame } from './message.js';

/** Where the destination says that it stands. */
export type StandingFrame = Extract<Frame, { readonly kind: 'standing' }>;

/** What became of a Commit: the destination owns the guest, or has owned it until it restarted; or will never own it. */
export type CommitFate = 'taken' | 'taken-and-lost' | 'refused' | 'never-arrived';

/** What the source of a migration may conclude about its Commit from an answer; `hand-over.md` has the table. */
export class CommitProof {
  /** The first question whose answer can tell what became of Commit. */
  private firstQuestion = Number.POSITIVE_INFINITY;
  /** Where the peer's boot, the one that will prepare, keeps its records. */
  private ledger: string | null = null;

  constructor(private readonly link: Link) {}

  /** Commit is about to leave: an answer to what has been asked before may have been under way since before. */
  commitLeaves(): void {
    this.firstQuestion = this.link.asked + 1;
  }

  /** Takes note of an answer, which may have come before Commit has left. */
  heard({ boot, ledger }: StandingFrame): void {
    if (boot === this.link.peerBoot) this.ledger = ledger;
  }

  /** @returns null: it proves nothing */
  fateBy({ standing, boot, ledger, answers }: StandingFrame): CommitFate | null {
    if (answers < this.firstQuestion) return null;
    if (standing === 'committed') return boot === this.link.peerBoot ? 'taken' : 'taken-and-lost';
    if (standing === 'aborted') return 'refused';
    return standing === 'unknown' && this.nothingRan(boot, ledger) ? 'never-arrived' : null;
  }

  /** Another boot that keeps the same records and has none of a Commit: it was not received, and can not be any more. */
  private nothingRan(boot: string, ledger: string | null): boolean {
    return boot !== this.link.peerBoot && ledger !== null && ledger === this.ledger;
  }
}
