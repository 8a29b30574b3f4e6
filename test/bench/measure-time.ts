/** Microseconds for each of `calls` calls, one after the other. */
export const microsecondsEach = async (calls: number, call: () => Promise<unknown>): Promise<number> => {
  const begin = performance.now();
  for (let left = calls; left > 0; left--) await call();
  return ((performance.now() - begin) * 1000) / calls;
};
