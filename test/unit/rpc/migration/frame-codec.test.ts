import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MigrationFrame, PageForm } from '../../../../gen/messages.js';
import { Failure, failed } from '../../../../server/kernel/failure.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../../../../server/kernel/uapi/x86-structs.js';
import type { GuestDescription, PageBatch } from '../../../../server/migration/guest.js';
import { type Frame, type Message, STANDINGS } from '../../../../server/migration/message.js';
import { decodeFrame, encodeFrame } from '../../../../server/rpc/migration/frame-codec.js';

const PAGE = 4096;

const bytes = (maxLength: number) => fc.uint8Array({ maxLength });
const counter = fc.nat({ max: Number.MAX_SAFE_INTEGER });
const u32 = fc.nat({ max: 0xffff_ffff });
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

const batch: fc.Arbitrary<PageBatch> = fc
  .record({
    form: fc.constantFrom('clear', 'sealed', 'deflated'),
    gfns: fc.array(fc.nat({ max: 2 ** 40 - 1 }), { maxLength: 8 }),
  })
  .chain(({ form, gfns }) =>
    fc.record({
      form: fc.constant(form),
      gfns: fc.constant(gfns),
      headers: bytes(form === 'sealed' ? 200 : 0),
      data: bytes(3 * PAGE),
    }),
  );

const cpuid = fc.nat({ max: 3 }).map((nent) => {
  const room = new Uint8Array(kvm_cpuid2.size + nent * kvm_cpuid_entry2.size);
  room.set(kvm_cpuid2.encode({ nent }));
  return room;
});

const slot = fc.record({
  id: u32,
  gpa: fc.nat({ max: 2 ** 30 }).map((page) => page * PAGE),
  bytes: fc.integer({ min: 1, max: 2 ** 30 }).map((pages) => pages * PAGE),
  flags: u32,
  pinned: fc.boolean(),
  userspaceAddress: fc.nat({ max: 2 ** 30 }).map((page) => page * PAGE),
});

const ioeventfd = fc.record({
  address: u64,
  length: u32,
  datamatch: fc.option(u64, { nil: null }),
  pio: fc.boolean(),
  count: u64,
});

const description: fc.Arbitrary<GuestDescription> = fc.record({
  kind: fc.constantFrom('plain', 'sev'),
  vmType: u32,
  encryptedState: fc.boolean(),
  vmsaFeatures: u64,
  irqchip: fc.boolean(),
  pit: fc.boolean(),
  pitSpeaker: fc.boolean(),
  bootCpuId: u32,
  tscKhz: u32,
  capabilities: fc.array(fc.record({ cap: u32, argument: u64 }), { maxLength: 3 }),
  vcpus: fc.array(fc.record({ id: u32, cpuid }), { maxLength: 3 }),
  slots: fc.array(slot, { maxLength: 3 }),
  ioeventfds: fc.array(ioeventfd, { maxLength: 3 }),
  irqfds: fc.array(fc.record({ gsi: u32, resample: fc.boolean(), count: u64 }), { maxLength: 3 }),
  touchedPages: fc.maxSafeNat(),
});

const run = fc.record({ first: fc.nat({ max: 2 ** 39 }), count: fc.integer({ min: 1, max: 2 ** 39 }) });

const reason = fc.string({ maxLength: 40 });

const message: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ kind: fc.constant('offer' as const), guest: description }),
  fc.record({ kind: fc.constant('accept' as const), target: bytes(50) }),
  fc.record({ kind: fc.constant('start' as const), opening: bytes(50) }),
  fc.record({ kind: fc.constant('pages' as const), batch }),
  fc.record({ kind: fc.constant('state' as const), state: bytes(50) }),
  fc.record({ kind: fc.constantFrom('prepare' as const, 'prepared' as const, 'commit' as const, 'committed' as const) }),
  fc.record({ kind: fc.constant('owed' as const), runs: fc.array(run, { maxLength: 8 }) }),
  fc.record({ kind: fc.constant('wanted' as const), gfns: fc.array(fc.nat({ max: 2 ** 40 - 1 }), { maxLength: 8 }) }),
  fc.record({ kind: fc.constant('complete' as const) }),
  fc.record({ kind: fc.constant('abort' as const), reason, detail: fc.string({ maxLength: 1000 }) }),
  fc.record({ kind: fc.constant('aborted' as const), reason, detail: fc.string({ maxLength: 1000 }) }),
);

const head = { session: fc.string({ maxLength: 64 }), boot: fc.uuid() };

const frame: fc.Arbitrary<Frame> = fc.oneof(
  fc.record({ ...head, kind: fc.constant('ask' as const), version: u32, number: counter }),
  fc.record({
    ...head,
    kind: fc.constant('standing' as const),
    answers: counter,
    standing: fc.constantFrom(...STANDINGS),
    ledger: fc.option(fc.uuid(), { nil: null }),
    received: counter,
  }),
  fc.record({ ...head, kind: fc.constant('ack' as const), received: counter }),
  fc.record({ ...head, kind: fc.constant('settled' as const) }),
  fc.record({ ...head, kind: fc.constant('data' as const), sequence: counter, message }),
);

const encoded = (value: Frame): Uint8Array => Buffer.concat(encodeFrame(value));

/** Without the classes of the generated codec. */
const plainly = (value: unknown): unknown =>
  value instanceof Uint8Array
    ? Buffer.from(value).toString('hex')
    : Array.isArray(value)
      ? value.map(plainly)
      : typeof value === 'object' && value !== null
        ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, plainly(each)]))
        : value;

describe('the codec of frames', () => {
  it('gives back what it was given', () => {
    fc.assert(
      fc.property(frame, (value) => {
        expect(plainly(decodeFrame(encoded(value)))).toEqual(plainly(value));
      }),
      { numRuns: 500 },
    );
  });

  it('looks at the bytes that it was given no longer than it takes, but for pages', () => {
    fc.assert(
      fc.property(frame, (given) => {
        if (given.kind === 'data' && given.message.kind === 'pages') return;
        const written = Buffer.concat(encodeFrame(given));
        const decoded = decodeFrame(written);
        written.fill(0xdd);
        expect(decoded).toEqual(given);
      }),
    );
  });

  it('says of nothing that comes from elsewhere more than why it is refused', () => {
    fc.assert(
      fc.property(bytes(300), (hostile) => {
        const result = decodeFrame(hostile);
        if (failed(result)) expect(result.details.field).toBeDefined();
        else expect(result.kind).toBeDefined();
      }),
      { numRuns: 2000 },
    );
  });

  it('survives a frame of which a byte has been changed, or the end is missing', () => {
    fc.assert(
      fc.property(frame, fc.nat(), fc.integer({ min: 1, max: 255 }), (value, at, change) => {
        const changed = encoded(value).slice();
        const index = at % changed.length;
        changed[index] = (changed[index] ?? 0) ^ change;
        for (const hostile of [changed, changed.subarray(0, index)]) {
          const result = decodeFrame(hostile);
          if (failed(result)) expect(result.details.field).toBeDefined();
        }
      }),
      { numRuns: 1000 },
    );
  });

  it.each([
    ['a number beyond 2^53', { session: 's', boot: 'b', ack: { received: 2n ** 53n } }, 'ack.received'],
    ['a session without end', { session: 'x'.repeat(65), boot: 'b', settled: {} }, 'session'],
    ['a boot without end', { session: 's', boot: 'x'.repeat(65), settled: {} }, 'boot'],
    ['no frame', { session: 's', boot: 'b' }, 'frame'],
    ['no message', { session: 's', boot: 'b', data: { sequence: 1 } }, 'data.message'],
    [
      'a detail without end',
      { session: 's', boot: 'b', data: { sequence: 1, abort: 'X', detail: 'x'.repeat(1001) } },
      'data.detail',
    ],
    ['a reason without end', { session: 's', boot: 'b', data: { sequence: 1, abort: 'x'.repeat(257) } }, 'data.abort'],
    ['a standing of its own', { session: 's', boot: 'b', standing: { standing: 'king' } }, 'standing.standing'],
    ['pages of no form', { session: 's', boot: 'b', data: { sequence: 1, pages: { form: 9 } } }, 'pages.form'],
    [
      'a page beyond the guest',
      { session: 's', boot: 'b', data: { sequence: 1, pages: { form: PageForm.PAGE_FORM_CLEAR, gfns: [2n ** 40n] } } },
      'pages.gfns',
    ],
    [
      'too many pages',
      { session: 's', boot: 'b', data: { sequence: 1, pages: { form: 1, gfns: Array.from({ length: 1025 }, () => 1n) } } },
      'pages.gfns',
    ],
    ['a run of no frames', { session: 's', boot: 'b', data: { sequence: 1, owed: { runs: [{ first: 1n }] } } }, 'data.owed.runs'],
    [
      'a run beyond the guest',
      { session: 's', boot: 'b', data: { sequence: 1, owed: { runs: [{ first: 1n, count: 2n ** 64n - 1n }] } } },
      'data.owed.runs',
    ],
    [
      'too many runs',
      { session: 's', boot: 'b', data: { sequence: 1, owed: { runs: Array.from({ length: 16_385 }, () => ({ count: 1n })) } } },
      'data.owed.runs',
    ],
    [
      'a wanted frame beyond the guest',
      { session: 's', boot: 'b', data: { sequence: 1, wanted: { gfns: [2n ** 40n] } } },
      'data.wanted.gfns',
    ],
    [
      'too many wanted frames',
      { session: 's', boot: 'b', data: { sequence: 1, wanted: { gfns: Array.from({ length: 1025 }, () => 1n) } } },
      'data.wanted.gfns',
    ],
    ['a guest of no kind', { session: 's', boot: 'b', data: { sequence: 1, offer: { kind: 'tdx' } } }, 'kind'],
    [
      'a slot that ends nowhere',
      { session: 's', boot: 'b', data: { sequence: 1, offer: { kind: 'plain', slots: [{ gpa: 0n, bytes: 2n ** 63n }] } } },
      'slots.bytes',
    ],
    [
      'a slot of half a page',
      { session: 's', boot: 'b', data: { sequence: 1, offer: { kind: 'plain', slots: [{ gpa: 2048n, bytes: 4096n }] } } },
      'slots.gpa',
    ],
    [
      'a CPUID that is shorter than it says',
      {
        session: 's',
        boot: 'b',
        data: { sequence: 1, offer: { kind: 'plain', vcpus: [{ id: 0, cpuid: kvm_cpuid2.encode({ nent: 5 }) }] } },
      },
      'vcpus.cpuid',
    ],
    [
      'more slots than KVM has',
      {
        session: 's',
        boot: 'b',
        data: { sequence: 1, offer: { kind: 'plain', slots: Array.from({ length: 32_765 }, () => ({ bytes: 4096n })) } },
      },
      'slots',
    ],
  ])('refuses %s, and names the field', (_what, value, field) => {
    const result = decodeFrame(MigrationFrame.encode(value).finish());
    expect(result).toBeInstanceOf(Failure);
    if (failed(result)) expect(result).toMatchObject({ errno: 'EINVAL', details: { field } });
  });
});

describe('the serializer of pages that is made by hand', () => {
  const FORM = {
    clear: PageForm.PAGE_FORM_CLEAR,
    sealed: PageForm.PAGE_FORM_SEALED,
    deflated: PageForm.PAGE_FORM_DEFLATED,
  } as const;

  it('is read by the generated codec', () => {
    fc.assert(
      fc.property(head.session, head.boot, counter, batch, (session, boot, sequence, pages) => {
        const value: Frame = { session, boot, kind: 'data', sequence, message: { kind: 'pages', batch: pages } };
        const read = MigrationFrame.decode(encoded(value));
        expect([read.session, read.boot, read.data?.sequence]).toEqual([session, boot, BigInt(sequence)]);
        expect(plainly({ ...read.data?.pages })).toEqual(
          plainly({ form: FORM[pages.form], gfns: pages.gfns.map(BigInt), headers: pages.headers, data: pages.data }),
        );
      }),
      { numRuns: 500 },
    );
  });

  it('and its frames are those that the generated codec writes', () => {
    fc.assert(
      fc.property(head.session, head.boot, counter, batch, (session, boot, sequence, { form, gfns, headers, data }) => {
        const pages = { form: FORM[form], gfns: gfns.map(BigInt), headers, data };
        const written = MigrationFrame.encode({ session, boot, data: { sequence, pages } }).finish();
        const value: Frame = {
          ...{ session, boot, sequence },
          kind: 'data',
          message: { kind: 'pages', batch: { form, gfns, headers, data } },
        };
        expect(plainly(decodeFrame(written))).toEqual(plainly(value));
      }),
      { numRuns: 500 },
    );
  });

  it('does not copy the pages', () => {
    const data = new Uint8Array(2 * PAGE);
    const pages: PageBatch = { form: 'clear', gfns: [1, 2], headers: new Uint8Array(0), data };
    const value: Frame = { session: 's', boot: 'b', kind: 'data', sequence: 1, message: { kind: 'pages', batch: pages } };
    expect(encodeFrame(value)[1]).toBe(data);
  });
});
