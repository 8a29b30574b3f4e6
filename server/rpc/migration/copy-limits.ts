import { type MigrationLimits, PostCopy } from '../../../gen/messages.js';
import { Failure, type Result } from '../../kernel/failure.js';
import { type CopyLimits, DEFAULT_LIMITS, type PostCopyMode } from '../../migration/limits.js';
import { STREAMS_MAX } from './session.js';

const ROUNDS_MAX = 1000;
/** QEMU's MAX_MIGRATE_DOWNTIME, milliseconds. */
const DOWNTIME_MAX = 2_000_000;
/** Bytes a second: a page now and then. */
const BANDWIDTH_MIN = 4096n;

const POST_COPY: Readonly<Record<number, PostCopyMode>> = {
  [PostCopy.POST_COPY_UNSPECIFIED]: 'never',
  [PostCopy.POST_COPY_ON_REQUEST]: 'on-request',
  [PostCopy.POST_COPY_AFTER_ROUNDS]: 'after-rounds',
  [PostCopy.POST_COPY_AT_ONCE]: 'at-once',
};

const wrong = (field: string, given: number | bigint, allowed: string): Failure =>
  new Failure('EINVAL', 'FIELD_OUT_OF_RANGE', 'simkvmd', { field: `limits.${field}`, given: String(given), allowed });

const wrongBandwidth = (field: string, given: bigint | null): Failure | null =>
  given === null || (given >= BANDWIDTH_MIN && given <= BigInt(Number.MAX_SAFE_INTEGER))
    ? null
    : wrong(field, given, `${BANDWIDTH_MIN} to 2^53-1 bytes a second`);

/** What a request says of how to copy, with defaults for what it does not say. EINVAL. */
export const copyLimits = (limits: MigrationLimits | null): Result<CopyLimits> => {
  if (limits === null) return DEFAULT_LIMITS;
  const { downtime_ms, rounds, bandwidth, auto_converge, streams, switchover_bandwidth } = limits;
  if (downtime_ms !== null && downtime_ms > DOWNTIME_MAX) return wrong('downtime_ms', downtime_ms, `0 to ${DOWNTIME_MAX}`);
  if (rounds !== null && (rounds < 1 || rounds > ROUNDS_MAX)) return wrong('rounds', rounds, `1 to ${ROUNDS_MAX}`);
  const unfit = wrongBandwidth('bandwidth', bandwidth) ?? wrongBandwidth('switchover_bandwidth', switchover_bandwidth);
  if (unfit !== null) return unfit;
  if (streams !== null && (streams < 1 || streams > STREAMS_MAX)) return wrong('streams', streams, `1 to ${STREAMS_MAX}`);
  const postCopy = POST_COPY[limits.post_copy];
  if (postCopy === undefined)
    return wrong(
      'post_copy',
      limits.post_copy,
      Object.values(PostCopy)
        .filter((value) => typeof value === 'number')
        .join(', '),
    );
  return {
    ...DEFAULT_LIMITS,
    postCopy,
    downtimeMs: downtime_ms ?? DEFAULT_LIMITS.downtimeMs,
    rounds: rounds ?? DEFAULT_LIMITS.rounds,
    bandwidth: bandwidth === null ? null : Number(bandwidth),
    switchoverBandwidth: switchover_bandwidth === null ? null : Number(switchover_bandwidth),
    autoConverge: auto_converge,
    compress: limits.compress,
    streams: streams ?? DEFAULT_LIMITS.streams,
  };
};
