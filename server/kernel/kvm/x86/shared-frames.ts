/** KVM_MAP_GPA_RANGE_ENCRYPTED: bit 4 of the attributes of KVM_HC_MAP_GPA_RANGE. */
const ENCRYPTED = 1n << 4n;

/** Frames [first, end). */
interface FrameRange {
  readonly first: number;
  readonly end: number;
}

/**
 * Which frames of an encrypted guest are shared with the host, so that they travel in the clear. No hypervisor can see that
 * of a page: the guest says so, by KVM_HC_MAP_GPA_RANGE, which a VMM has let through. What it has not spoken of counts as
 * encrypted. A VMM keeps this list on a real host (the exit is its to answer); here the kernel keeps it along.
 */
export class SharedFrames {
  /** In ascending order, apart from each other. */
  private ranges: readonly FrameRange[] = [];

  has(frame: number): boolean {
    let low = 0;
    let high = this.ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const range = this.ranges[middle];
      if (range === undefined || frame < range.first) high = middle;
      else if (frame >= range.end) low = middle + 1;
      else return true;
    }
    return false;
  }

  list(): readonly FrameRange[] {
    return this.ranges;
  }

  /** The guest has changed [first, first + count), and userspace has agreed. */
  mapGpaRange(first: number, count: number, attributes: bigint): void {
    const end = first + count;
    const rest = this.ranges.flatMap((range) => [
      { first: range.first, end: Math.min(range.end, first) },
      { first: Math.max(range.first, end), end: range.end },
    ]);
    if ((attributes & ENCRYPTED) === 0n) rest.push({ first, end });
    this.ranges = rest.filter((range) => range.first < range.end).sort((a, b) => a.first - b.first);
  }
}
