/**
 * Where the MAC stands in a packet's header. The IV is under it, so that it is another one for each packet, whatever that holds.
 */
const MAC_OFFSET = 20;
/**
 * 32-bit words of a MAC that are kept, of eight. They are compared all: that two packets agree in 128 bits of an HMAC, and one
 * is taken for the other, does not happen.
 */
const WORDS = 4;
const ROOM_AT_FIRST = 256;
const NO_GPA = -1;

/**
 * Packets by their MACs, numbered in the order in which they were added. A migration adds one for each page of a guest, and all
 * are kept; so they lie in arrays that grow, with no object for each that the garbage collector would follow.
 */
export class PacketLog {
  private added = 0;
  private macs = new Uint32Array(0);
  private gpas = new Float64Array(0);
  /** 1 + the number of a packet, in the first place that was free from that of its MAC's first word on; 0: free. */
  private places = new Int32Array(0);

  /** Packets that were added. */
  get size(): number {
    return this.added;
  }

  /** @returns the number of the last packet with the MAC of this header; -1: there is none */
  find(header: Uint8Array): number {
    return this.added === 0 ? -1 : this.places[this.placeOf(header)] - 1;
  }

  /** Address of the guest memory that a packet holds; null: no memslot has it. */
  gpa(number: number): number | null {
    const gpa = this.gpas[number];
    return gpa === NO_GPA ? null : gpa;
  }

  /** @returns what `find` gave before */
  add(header: Uint8Array, gpa: number | null): number {
    if (this.added === this.gpas.length) this.grow();
    const number = this.added++;
    for (let word = 0; word < WORDS; word++) this.macs[WORDS * number + word] = wordOf(header, word);
    this.gpas[number] = gpa ?? NO_GPA;
    const place = this.placeOf(header);
    const before = this.places[place] - 1;
    this.places[place] = number + 1;
    return before;
  }

  /** The place of the packet with this MAC, or the one that it would get. Half of all places are free. */
  private placeOf(header: Uint8Array): number {
    const { places, macs } = this;
    const first = wordOf(header, 0);
    for (let place = first % places.length; ; place = (place + 1) % places.length) {
      const mac = WORDS * (places[place] - 1);
      if (mac < 0) return place;
      if (macs[mac] !== first) continue;
      if (macs[mac + 1] === wordOf(header, 1) && macs[mac + 2] === wordOf(header, 2) && macs[mac + 3] === wordOf(header, 3))
        return place;
    }
  }

  private grow(): void {
    const room = Math.max(ROOM_AT_FIRST, 2 * this.added);
    const { macs, gpas } = this;
    this.macs = new Uint32Array(WORDS * room);
    this.macs.set(macs);
    this.gpas = new Float64Array(room);
    this.gpas.set(gpas);
    const places = new Int32Array(2 * room);
    for (const old of this.places) {
      if (old === 0) continue;
      let place = macs[WORDS * (old - 1)] % places.length;
      while (places[place] !== 0) place = (place + 1) % places.length;
      places[place] = old;
    }
    this.places = places;
  }
}

/** Headers lie anywhere in a message, so that an array of words cannot be laid over one. */
const wordOf = (header: Uint8Array, word: number): number => {
  const at = MAC_OFFSET + 4 * word;
  return (header[at] | (header[at + 1] << 8) | (header[at + 2] << 16) | (header[at + 3] << 24)) >>> 0;
};
