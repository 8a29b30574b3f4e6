import { ExchangeRequest } from '../../../gen/messages.js';
import type { Meddler, Passage } from './middle.js';

/** What somebody in the middle says in place of a message; and, if he has kept it back, after the next one from the same side. */
export interface Meddling {
  readonly now: readonly Buffer[];
  readonly later?: readonly Buffer[];
}

/** @param old the message of the same kind of a session before */
export type Deed = (passage: Passage, old: Buffer) => Meddling;

/** Tag and length of a short message. */
const HEAD_BYTES = 5;

/** Another bit, at so much of the message, from 0 to 1. */
const flip =
  (where: number): Deed =>
  ({ bytes }) => {
    const changed = Buffer.from(bytes);
    const bit = HEAD_BYTES * 8 + Math.floor(where * ((bytes.length - HEAD_BYTES) * 8 - 1));
    changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
    return { now: [changed] };
  };

export const FLIPS: Readonly<Record<string, Deed>> = {
  'flips an early bit': flip(0),
  'flips a bit in the middle': flip(0.5),
  'flips the last bit': flip(1),
};

const sealed = (bytes: Uint8Array): Buffer => Buffer.from(ExchangeRequest.encode({ sealed: bytes }).finish());

export const DEEDS: Readonly<Record<string, Deed>> = {
  ...FLIPS,
  'cuts the end off': ({ bytes }) => ({ now: [sealed(ExchangeRequest.decode(bytes).sealed?.subarray(0, -1) ?? bytes)] }),
  'keeps it': () => ({ now: [] }),
  'says it twice': ({ bytes }) => ({ now: [bytes, bytes] }),
  'says it after the next one': ({ bytes }) => ({ now: [], later: [bytes] }),
  'says what an old session said': (_passage, old) => ({ now: [old] }),
};

/** Meddles with one message of each session, the first of its kind. */
export class SessionMeddler {
  private readonly plans = new Map<string, { readonly from: string; readonly what: string; readonly deed: Deed }>();
  /** Sessions with which it has meddled. */
  readonly meddled = new Set<string>();
  private readonly kept = new Map<string, readonly Buffer[]>();

  /** @param old what a session before has said, by `nameOfKind` */
  constructor(private readonly old: ReadonlyMap<string, Buffer>) {}

  plan(session: string, { from, what }: Pick<Passage, 'from' | 'what'>, deed: Deed): void {
    this.plans.set(session, { from, what, deed });
  }

  readonly meddler: Meddler = (passage) => {
    const { session, from, what, ordinal, bytes } = passage;
    const plan = this.plans.get(session);
    if (plan === undefined || plan.from !== from) return [bytes];
    const later = this.kept.get(session) ?? [];
    this.kept.delete(session);
    if (plan.what !== what || ordinal !== 1) return [bytes, ...later];
    this.meddled.add(session);
    const done = plan.deed(passage, this.old.get(nameOfKind(passage)) ?? bytes);
    if (done.later !== undefined) this.kept.set(session, done.later);
    return done.now;
  };
}

/** Pages stay where they are until one is wanted: all of them could have come before the guest touches any. */
export const untilWanted = (meddler: Meddler): Meddler => {
  const gates = new Map<string, { readonly open: () => void; readonly opened: Promise<void> }>();
  const gateOf = (session: string) => {
    let open = (): void => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    const gate = gates.get(session) ?? { open, opened };
    gates.set(session, gate);
    return gate;
  };
  return async (passage) => {
    if (passage.what === 'wanted') gateOf(passage.session).open();
    if (passage.what === 'pages') await gateOf(passage.session).opened;
    return meddler(passage);
  };
};

export const nameOfKind = ({ from, what }: Pick<Passage, 'from' | 'what'>): string => `${from}: ${what}`;
