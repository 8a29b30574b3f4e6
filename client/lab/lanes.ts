import type { SimKvm } from '../index.js';

/** Scenarios that run at the same time on one host: while one waits for its guest, others call. */
const LANES_PER_HOST = 3;

/** Does all jobs, several at a time, spread over the hosts; their results are in the order of the jobs. */
export const inLanes = async <T>(hosts: readonly SimKvm[], jobs: readonly ((simkvm: SimKvm) => Promise<T>)[]): Promise<T[]> => {
  const results = new Map<number, T>();
  let next = 0;
  const lane = async (simkvm: SimKvm): Promise<void> => {
    for (let index = next++; ; index = next++) {
      const job = jobs[index];
      if (job === undefined) return;
      results.set(index, await job(simkvm));
    }
  };
  await Promise.all(hosts.flatMap((simkvm) => Array.from({ length: LANES_PER_HOST }, () => lane(simkvm))));
  return jobs.map((_, index) => results.get(index)).filter((result) => result !== undefined);
};
