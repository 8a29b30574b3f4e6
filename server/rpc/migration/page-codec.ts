import type { GuestPages } from '../../../gen/messages.js';
import { PageForm } from '../../../gen/messages.js';
import { Failure, type Result } from '../../kernel/failure.js';
import type { PageBatch } from '../../migration/guest.js';

/**
 * The one serializer that is made by hand: GuestPages inside FrameData inside MigrationFrame, as the contract has them. The
 * pages themselves are the last bytes of the frame, so that they are never copied here: what comes before them is one piece,
 * and they are the other.
 */

/** A tag of wire type 2 (length-delimited) or 0 (varint). */
const bytesTag = (field: number): number => (field << 3) | 2;
const varintTag = (field: number): number => field << 3;

const TAG = {
  frameSession: bytesTag(1),
  frameBoot: bytesTag(2),
  frameData: bytesTag(5),
  dataSequence: varintTag(1),
  dataPages: bytesTag(5),
  pagesForm: varintTag(1),
  pagesGfns: bytesTag(2),
  pagesHeaders: bytesTag(3),
  pagesData: bytesTag(4),
} as const;

/** Pages of one message. */
const BATCH_PAGES_MAX = 1024;
/** Guest frame numbers are below: 52 bits of address. */
export const GFN_END = 2n ** 40n;

const FORM: Readonly<Record<PageBatch['form'], number>> = {
  clear: PageForm.PAGE_FORM_CLEAR,
  sealed: PageForm.PAGE_FORM_SEALED,
  deflated: PageForm.PAGE_FORM_DEFLATED,
};
const FORMS = ['clear', 'sealed', 'deflated'] as const;

const LOW_BITS = 0x80;

const varintBytes = (value: number): number => {
  let bytes = 1;
  for (let rest = value; rest >= LOW_BITS; rest = Math.floor(rest / LOW_BITS)) bytes++;
  return bytes;
};

/** Writes into a buffer whose size is known. */
class Writer {
  private at = 0;

  constructor(private readonly out: Buffer) {}

  varint(value: number): this {
    let rest = value;
    for (; rest >= LOW_BITS; rest = Math.floor(rest / LOW_BITS)) this.out[this.at++] = (rest % LOW_BITS) + LOW_BITS;
    this.out[this.at++] = rest;
    return this;
  }

  text(tag: number, text: string, length: number): this {
    this.varint(tag).varint(length);
    this.at += this.out.write(text, this.at, 'utf8');
    return this;
  }

  bytes(bytes: Uint8Array): this {
    this.out.set(bytes, this.at);
    this.at += bytes.length;
    return this;
  }
}

/** Bytes of a length-delimited field of a tag of one byte. */
const fieldBytes = (length: number): number => 1 + varintBytes(length) + length;

/** Where a frame with pages belongs. */
export interface PagesHead {
  readonly session: string;
  readonly boot: string;
  readonly sequence: number;
}

/** @returns what comes before the pages, and the pages: one behind the other they are the frame */
export const encodePagesFrame = ({ session, boot, sequence }: PagesHead, batch: PageBatch): [Uint8Array, Uint8Array] => {
  const { gfns, headers, data } = batch;
  const form = FORM[batch.form];
  const gfnBytes = gfns.reduce((sum, gfn) => sum + varintBytes(gfn), 0);
  const beforeData = 1 + varintBytes(form) + fieldBytes(gfnBytes) + fieldBytes(headers.length) + 1 + varintBytes(data.length);
  const pagesBytes = beforeData + data.length;
  const beforePages = 1 + varintBytes(sequence) + 1 + varintBytes(pagesBytes);
  const dataBytes = beforePages + pagesBytes;
  const [sessionBytes, bootBytes] = [Buffer.byteLength(session), Buffer.byteLength(boot)];
  const beforeFrameData = fieldBytes(sessionBytes) + fieldBytes(bootBytes) + 1 + varintBytes(dataBytes);
  const head = Buffer.allocUnsafe(beforeFrameData + beforePages + beforeData);
  const writer = new Writer(head);
  writer.text(TAG.frameSession, session, sessionBytes).text(TAG.frameBoot, boot, bootBytes);
  writer.varint(TAG.frameData).varint(dataBytes).varint(TAG.dataSequence).varint(sequence);
  writer.varint(TAG.dataPages).varint(pagesBytes).varint(TAG.pagesForm).varint(form);
  writer.varint(TAG.pagesGfns).varint(gfnBytes);
  for (const gfn of gfns) writer.varint(gfn);
  writer.varint(TAG.pagesHeaders).varint(headers.length).bytes(headers);
  writer.varint(TAG.pagesData).varint(data.length);
  return [head, data];
};

/** The pages of a message; EINVAL for what no source would send. How much there is of each the kind of guest checks. */
export const pageBatchOf = ({ form, gfns, headers, data }: GuestPages): Result<PageBatch> => {
  const name = FORMS.find((each) => FORM[each] === form);
  const wrong = (field: string, given: string, allowed: string): Failure =>
    new Failure('EINVAL', 'GUEST_PAGES_MALFORMED', 'simkvmd', { field: `pages.${field}`, given, allowed });
  if (name === undefined) return wrong('form', String(form), FORMS.join(' or '));
  if (gfns.length > BATCH_PAGES_MAX) return wrong('gfns', `${gfns.length} pages`, `at most ${BATCH_PAGES_MAX}`);
  for (const gfn of gfns) if (gfn >= GFN_END) return wrong('gfns', String(gfn), 'below 2^40');
  return { form: name, gfns: gfns.map(Number), headers, data };
};
