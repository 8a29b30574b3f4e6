import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { spawnOnDaemon } from './backend-grpc.js';
import { readDeferrals } from './deferred.js';
import { Executor } from './executor.js';
import { goldenFiles } from './golden-file.js';
import { startTimelessGrpcHost } from './grpc-host.js';
import { describeDifference, replay } from './replay.js';

const files = goldenFiles();
const deferrals = readDeferrals(files);
const areas = new Set(files.map((file) => file.area));

describe('recordings of a real kernel, over gRPC', () => {
  let host: Awaited<ReturnType<typeof startTimelessGrpcHost>>;
  beforeAll(async () => {
    host = await startTimelessGrpcHost();
  });
  afterAll(() => host.close());

  describe.each([...areas])('%s', (area) => {
    for (const file of files.filter((each) => each.area === area && !deferrals.has(each.name)))
      it.concurrent(file.name, async () => {
        const remote = await spawnOnDaemon(host.address, host.time);
        const difference = await replay(await Executor.create(remote.calls), file);
        await remote.close();
        if (difference !== null) expect.fail(describeDifference(file, difference));
      });
  });
});
