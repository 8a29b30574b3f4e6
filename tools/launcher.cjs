#!/usr/bin/env node
/**
 * Starts the bundled daemon (dist/simkvmd.bundle.js) with V8's code cache beside it, which saves most of the time that
 * compiling takes. The cache is made by the build; another version of V8 does without it.
 */
const { readFileSync, writeFileSync, existsSync } = require('node:fs');
const { dirname, join } = require('node:path');
const { setFlagsFromString } = require('node:v8');
const { Script } = require('node:vm');

// Between two collections the old generation may grow to twice what is alive, not to four times: what node:http2 keeps of a
// call outlives the young one, and would be most of the memory of a daemon with thousands of VMs. Flags are part of what a
// code cache is checked against, so this comes before the script.
setFlagsFromString('--heap-growing-percent=100');

const filename = join(__dirname, 'simkvmd.bundle.js');
const cacheFile = `${filename}.cache`;
const cachedData = existsSync(cacheFile) ? readFileSync(cacheFile) : undefined;

const source = `(function (require, module, exports, __filename, __dirname) {${readFileSync(filename, 'utf8').replace(/^#!.*/, '')}\n})`;
const script = new Script(source, { filename, cachedData });

// For the build: what has been compiled by the end of a run is what the next run needs.
if (process.env.SIMKVM_WRITE_CODE_CACHE === '1') process.on('exit', () => writeFileSync(cacheFile, script.createCachedData()));

// grpc-js looks for its own protos (channelz) from its folder, and it is the only module of the bundle that asks for one.
const home = dirname(require.resolve('@grpc/grpc-js'));
const bundle = { exports: {} };
script.runInThisContext()(require, bundle, bundle.exports, filename, home);
