import { deflateRawSync, inflateRawSync } from 'node:zlib';
import { PAGE_SIZE } from '../hardware/units.js';
import { Failure, type Result } from '../kernel/failure.js';
import type { PageBatch } from './guest.js';

/** The fastest level: what it leaves of zeros and text is hardly more, and a link that is slower than it wants all the rest. */
const LEVEL = 1;

/** Clear pages as one raw deflate stream (RFC 1951); the batch as it was where that is no smaller. */
export const deflated = (batch: PageBatch): PageBatch => {
  if (batch.form !== 'clear') return batch;
  const data = deflateRawSync(batch.data, { level: LEVEL });
  const { gfns, headers } = batch;
  return data.length < batch.data.length ? { form: 'deflated', gfns, headers, data } : batch;
};

/** The pages of a deflated batch, any other as it is. EINVAL: not what `deflated` gives, or more than the pages that it names. */
export const inflated = (batch: PageBatch): Result<PageBatch> => {
  if (batch.form !== 'deflated') return batch;
  const bytes = batch.gfns.length * PAGE_SIZE;
  const wrong = new Failure('EINVAL', 'PAGE_BATCH_NOT_INFLATED', 'server/migration', { pages: String(batch.gfns.length) });
  if (bytes === 0) return wrong;
  try {
    // However little arrives, it never grows beyond what the batch may hold.
    return { ...batch, form: 'clear', data: inflateRawSync(batch.data, { maxOutputLength: bytes }) };
  } catch {
    return wrong;
  }
};
