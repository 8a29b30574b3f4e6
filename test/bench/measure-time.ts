/** Microseconds for each of `calls` calls, one after the other. */
export const microsecondsEach = async (calls: number, call: () => Promise<unknown>): Promise<number> => {
  const begin = performance.now();
  for (let left = calls; left > 0; left--) await call();
  return ((performance.now() - begin) * 1000) / calls;
};

/** Microseconds of this process's CPU time that a synchronous piece of work takes: what else the machine does is not in it. */
export const cpuMicroseconds = (work: () => void): number => {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return user + system;
};
