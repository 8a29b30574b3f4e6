import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { startGrpcHost } from '../conformance/grpc-host.js';
import { fuzzCalls } from './fuzz/calls.js';
import { fuzzOverGrpc } from './fuzz/over-grpc.js';
import { type FuzzCall, FuzzWorld, PROCESSES } from './fuzz/world.js';

const LIMIT_MS = 12_000;

describe('calls of any kind by several processes at once', () => {
  it('throw nothing, and leave nothing behind when all processes have exited', () => {
    fc.assert(
      fc.property(fuzzCalls(PROCESSES), (calls: readonly FuzzCall[]) => {
        const world = new FuzzWorld();
        for (const call of calls) world.call(call);
        expect(world.finish()).toEqual([]);
      }),
      { seed: 1, numRuns: 150, interruptAfterTimeLimit: LIMIT_MS, markInterruptAsFailure: false },
    );
  });

  it('over gRPC: the same of a daemon', async () => {
    const host = await startGrpcHost();
    await fc.assert(
      fc.asyncProperty(fuzzCalls(2), async (calls) => {
        expect(await fuzzOverGrpc(host, calls)).toEqual([]);
      }),
      { seed: 1, numRuns: 12, interruptAfterTimeLimit: LIMIT_MS, markInterruptAsFailure: false },
    );
    host.close();
  });
});
