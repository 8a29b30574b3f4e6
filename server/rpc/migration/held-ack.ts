import type { Frame } from '../../migration/message.js';

type Ack = Extract<Frame, { readonly kind: 'ack' }>;

/** Acknowledgements that one frame may stand for: a quarter of the messages of pages that are under way. */
const ACKS_MAX = 4;
/** So long one waits for the next, milliseconds. */
const HELD_MS = 1;

/**
 * The last acknowledgement, which says what those before it have said. While a guest's memory comes, there is one for each
 * message, and each takes both sides as long as 100 KiB of it do.
 */
export class HeldAck {
  private ack: Ack | null = null;
  private count = 0;
  private timer: NodeJS.Timeout | null = null;

  constructor(private readonly send: (ack: Ack) => void) {}

  hold(ack: Ack): void {
    this.ack = ack;
    this.count++;
    if (this.count >= ACKS_MAX) this.flush();
    else this.timer ??= setTimeout(() => this.flush(), HELD_MS).unref();
  }

  /** Sends what is held; before anything else that is said, which may stand for it to whoever listens. */
  flush(): void {
    const { ack, timer } = this;
    if (timer !== null) clearTimeout(timer);
    this.timer = null;
    this.ack = null;
    this.count = 0;
    if (ack !== null) this.send(ack);
  }
}
