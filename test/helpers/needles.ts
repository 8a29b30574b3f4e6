/** A string of bytes that is sought, and which secret it would give away. */
interface Needle {
  readonly secret: number;
  readonly bytes: Buffer;
}

/** What a secret looks like in base64 behind 0, 1 or 2 other bytes: the characters that depend on it alone. */
const inBase64 = (secret: Uint8Array): Buffer[] =>
  [0, 1, 2].map((phase) => {
    const text = Buffer.concat([Buffer.alloc(phase), secret])
      .toString('base64')
      .replaceAll('=', '');
    const whole = Math.floor(((phase + secret.length) * 8) / 6);
    return Buffer.from(text.slice(Math.ceil((phase * 8) / 6), whole));
  });

const appearances = (secret: Uint8Array): Buffer[] => {
  const hex = Buffer.from(secret).toString('hex');
  const base64 = inBase64(secret);
  const urlSafe = base64.map((text) => Buffer.from(text.toString().replaceAll('+', '-').replaceAll('/', '_')));
  return [Buffer.from(secret), Buffer.from(hex), Buffer.from(hex.toUpperCase()), ...base64, ...urlSafe];
};

/**
 * Seeks secrets of at least 16 bytes in large amounts of bytes: as they are, at any offset, in hex and in base64. A table of the
 * first two bytes and an index of the first four say where a comparison is worth while.
 */
export class Needles {
  private readonly pairs = new Uint8Array(2 ** 16);
  private readonly byStart = new Map<number, Needle[]>();

  constructor(secrets: readonly Uint8Array[]) {
    for (const [secret, value] of secrets.entries())
      for (const bytes of appearances(value)) {
        const start = bytes.readUInt32LE(0);
        this.pairs[start & 0xffff] = 1;
        this.byStart.set(start, [...(this.byStart.get(start) ?? []), { secret, bytes }]);
      }
  }

  /** The secrets that are in `haystack`. */
  in(haystack: Uint8Array): Set<number> {
    const found = new Set<number>();
    const bytes = Buffer.from(haystack.buffer, haystack.byteOffset, haystack.length);
    for (let at = 0; at + 4 <= bytes.length; at++) {
      const pair = (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8);
      if (this.pairs[pair] === 0) continue;
      for (const needle of this.byStart.get(bytes.readUInt32LE(at)) ?? [])
        if (bytes.compare(needle.bytes, 0, needle.bytes.length, at, Math.min(at + needle.bytes.length, bytes.length)) === 0)
          found.add(needle.secret);
    }
    return found;
  }
}
