#!/usr/bin/env node
/**
 * Starts the bundled daemon (dist/simkvmd.bundle.js) with V8's code cache beside it, which saves most of the time that
 * compiling takes. The cache is made by the build; another version of V8 does without it.
 */
const { readFileSync, writeFileSync, existsSync } = require('node:fs');
const { dirname, join } = require('node:path');
const { Script } = require('node:vm');

const filename = join(__dirname, 'simkvmd.bundle.js');
const cacheFile = `${filename}.cache`;
const cachedData = existsSync(cacheFile) ? readFileSync(cacheFile) : undefined;

// The bundle is ASCII, and a string of one byte for each character is half the work.
const source = `(function (require, module, exports, __filename, __dirname) {${readFileSync(filename, 'latin1')}\n})`;
const script = new Script(source, { filename, cachedData });

/** When the daemon is long up, milliseconds. */
const STARTED_MS = 1000;

if (process.env.SIMKVM_WRITE_CODE_CACHE === '1') {
  // For the build: what has been compiled by the end of a run is what the next run needs.
  process.on('exit', () => writeFileSync(cacheFile, script.createCachedData()));
} else {
  // Between two collections the old generation may grow to twice what is alive, not to four times: what node:http2 keeps of
  // a call outlives the young one, and would be most of the memory of a daemon with thousands of VMs. Not before the start
  // is over: node:v8 takes milliseconds to load, and a code cache is refused under other flags than it was made under.
  setTimeout(() => require('node:v8').setFlagsFromString('--heap-growing-percent=100'), STARTED_MS).unref();
}

// grpc-js looks for its own protos (channelz) from its folder, and it is the only module of the bundle that asks for one.
const home = dirname(require.resolve('@grpc/grpc-js'));
const bundle = { exports: {} };
script.runInThisContext()(require, bundle, bundle.exports, filename, home);
