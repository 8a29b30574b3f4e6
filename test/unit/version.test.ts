import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { VERSION } from '../../server/version.js';

it("the daemon's version is the package's", () => {
  expect(VERSION).toBe(JSON.parse(readFileSync('package.json', 'utf8')).version);
});
