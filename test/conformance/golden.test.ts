import { describe, expect, it } from 'vitest';
import { readDeferrals } from './deferred.js';
import { goldenFiles } from './golden-file.js';
import { createInProcessHost } from './in-process-host.js';
import { describeDifference, replay } from './replay.js';

const files = goldenFiles();
const deferrals = readDeferrals(files);
const areas = new Set(files.map((file) => file.area));

describe.each([...areas])('recordings of a real kernel: %s', (area) => {
  for (const file of files.filter((each) => each.area === area)) {
    const deferral = deferrals.get(file.name);
    it(deferral === undefined ? file.name : `${file.name} (put off: ${deferral.operation})`, async () => {
      const host = await createInProcessHost();
      const difference = await replay(host.executor, file);
      if (deferral !== undefined)
        expect(difference, `${file.name} is put off for ${deferral.operation}, but passes`).not.toBeNull();
      else if (difference !== null) expect.fail(describeDifference(file, difference));
      expect(await host.finish(), 'left behind by a process that has ended').toEqual([]);
    });
  }
});
