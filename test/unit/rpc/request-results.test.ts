import { describe, expect, it } from 'vitest';
import { Failure, failed } from '../../../server/kernel/failure.js';
import { RESULTS_MAX, RequestResults } from '../../../server/rpc/request-results.js';

const PATH = '/simkvm.v1.KvmVm/CreateVcpu';

/** Executes a call under `id`, as the dispatch does; the replies that it and repetitions of it get. */
const ask = (results: RequestResults<string>, id: number, path = PATH) => {
  const replies: string[] = [];
  const begun = results.begin(id, path, (reply) => replies.push(reply));
  return { begun, replies, reason: begun instanceof Failure ? begun.reason : null };
};

describe('a call under a request id', () => {
  it('is executed once, and repetitions get its reply', () => {
    const results = new RequestResults<string>();
    expect(ask(results, 1).begun).toBe('execute');
    const during = ask(results, 1);
    expect(during.begun).toBe('pending');
    expect(during.replies).toEqual([]);
    results.finish(1, 'fd 5');
    expect(during.replies).toEqual(['fd 5']);
    expect(ask(results, 1)).toMatchObject({ begun: 'pending', replies: ['fd 5'] });
  });

  it('belongs to one method', () => {
    const results = new RequestResults<string>();
    ask(results, 1);
    expect(ask(results, 1, '/simkvm.v1.KvmVm/Irqfd').reason).toBe('REQUEST_ID_REUSED');
  });

  it.each([0, -1, 1.5, Number.NaN, 2 ** 53])('is no %d', (id) => {
    expect(ask(new RequestResults<string>(), id).reason).toBe('REQUEST_ID_INVALID');
  });
});

describe('an acknowledgement', () => {
  it('forgets the replies up to its id, and refuses their ids', () => {
    const results = new RequestResults<string>();
    for (const id of [1, 2, 3]) {
      ask(results, id);
      results.finish(id, `reply ${id}`);
    }
    results.acknowledge(2);
    expect(results.size).toBe(1);
    expect(ask(results, 2).reason).toBe('REQUEST_ACKNOWLEDGED');
    expect(ask(results, 3).replies).toEqual(['reply 3']);
  });

  it('that is lower than one before changes nothing', () => {
    const results = new RequestResults<string>();
    results.acknowledge(7);
    results.acknowledge(3);
    expect(ask(results, 5).reason).toBe('REQUEST_ACKNOWLEDGED');
  });

  it('keeps the replies of the ids that it names, also of one that is still executed, and one that never arrived', () => {
    const results = new RequestResults<string>();
    for (const id of [1, 2, 3]) ask(results, id);
    results.finish(1, 'first');
    results.acknowledge(4, [2, 4]);
    expect(ask(results, 1).reason).toBe('REQUEST_ACKNOWLEDGED');
    results.finish(2, 'second');
    results.finish(3, 'third');
    expect(results.size).toBe(1);
    expect(ask(results, 2).replies).toEqual(['second']);
    expect(ask(results, 4).begun).toBe('execute');
  });

  it('lets one call last while thousands of others come and go', () => {
    const results = new RequestResults<string>();
    ask(results, 1);
    for (let id = 2; id < 3 * RESULTS_MAX; id++) {
      results.acknowledge(id - 1, [1]);
      expect(failed(ask(results, id).begun)).toBe(false);
      results.finish(id, 'done');
    }
    const last = ask(results, 1);
    results.finish(1, 'KVM_EXIT_HLT');
    expect(last.replies).toEqual(['KVM_EXIT_HLT']);
  });

  it('is what keeps the number of kept replies below its limit', () => {
    const results = new RequestResults<string>();
    for (let id = 1; id <= RESULTS_MAX; id++) ask(results, id);
    expect(ask(results, RESULTS_MAX + 1).reason).toBe('TOO_MANY_RESULTS');
  });
});
