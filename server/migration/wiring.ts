import type { IoeventfdDescription, IrqfdDescription, WiringDescription } from './guest.js';
import { fromWords, PART, type StatePart, words } from './state-parts.js';

/** 64-bit numbers of each ioeventfd and each irqfd. */
const IOEVENTFD_WORDS = 6;
const IRQFD_WORDS = 3;

const part = (kind: StatePart['kind'], values: readonly bigint[]): StatePart => ({
  kind,
  index: 0,
  request: 0,
  bytes: words(values),
});
const bit = (value: boolean): bigint => (value ? 1n : 0n);

/** Device wiring as it is when the guest has stopped, with what its eventfds count. */
export const encodeWiring = ({ ioeventfds, irqfds }: WiringDescription): readonly StatePart[] => [
  part(
    PART.IOEVENTFDS,
    ioeventfds.flatMap(({ address, length, datamatch, pio, count }) => [
      ...[address, BigInt(length), bit(datamatch !== null), datamatch ?? 0n, bit(pio), count],
    ]),
  ),
  part(
    PART.IRQFDS,
    irqfds.flatMap(({ gsi, resample, count }) => [BigInt(gsi), bit(resample), count]),
  ),
];

const groups = (bytes: Uint8Array, size: number): bigint[][] => {
  const values = fromWords(bytes);
  return Array.from({ length: Math.floor(values.length / size) }, (_, index) => values.slice(index * size, (index + 1) * size));
};

const decodeIoeventfd = ([
  address = 0n,
  length = 0n,
  matches = 0n,
  datamatch = 0n,
  pio = 0n,
  count = 0n,
]: bigint[]): IoeventfdDescription => ({
  ...{ address, count },
  length: Number(length),
  datamatch: matches === 0n ? null : datamatch,
  pio: pio !== 0n,
});

const decodeIrqfd = ([gsi = 0n, resample = 0n, count = 0n]: bigint[]): IrqfdDescription => ({
  gsi: Number(gsi),
  resample: resample !== 0n,
  count,
});

/** What a part says of the wiring; null: it is about something else. */
export const decodeWiring = ({ kind, bytes }: StatePart): Partial<WiringDescription> | null => {
  if (kind === PART.IOEVENTFDS) return { ioeventfds: groups(bytes, IOEVENTFD_WORDS).map(decodeIoeventfd) };
  if (kind === PART.IRQFDS) return { irqfds: groups(bytes, IRQFD_WORDS).map(decodeIrqfd) };
  return null;
};
