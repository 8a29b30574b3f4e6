/**
 * Builds `dist/`: generates `gen/`, compiles everything, and bundles the daemon into one file with a code cache, since
 * finding, reading and compiling hundreds of modules is most of a cold start.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import { writeCodeCache } from './build/code-cache.js';
import { apart, deferred } from './build/deferred.js';

const OUT = 'dist';
const LAUNCHER = join(OUT, 'simkvmd.cjs');

/** Loaded as they are: they find files beside themselves, and are imported lazily. */
const EXTERNAL = ['@grpc/proto-loader', '@grpc/reflection', 'grpc-health-check', 'iced-x86', 'pino'];

const run = (bin: string, ...args: string[]): void => {
  execFileSync(join('node_modules', '.bin', bin), args, { stdio: 'inherit' });
};

rmSync(OUT, { recursive: true, force: true });
execFileSync(process.execPath, [join('tools', 'run.mjs'), 'generate'], { stdio: 'inherit' });
run('tsc', '-p', 'tsconfig.json');

mkdirSync(join(OUT, 'gen'), { recursive: true });
for (const file of readdirSync('gen')) if (/\.(js|d\.ts)$/.test(file)) copyFileSync(join('gen', file), join(OUT, 'gen', file));

const FORMAT = { platform: 'node', target: 'node20', format: 'cjs', logLevel: 'warning' } as const;
// A fifth of the bundle's size, for reflection alone.
const DESCRIPTORS = 'descriptors.cjs';
await build({ ...FORMAT, entryPoints: [join('gen', 'descriptors.js')], outfile: join(OUT, DESCRIPTORS) });
await build({
  ...FORMAT,
  entryPoints: [join('server', 'main.ts')],
  outfile: join(OUT, 'simkvmd.bundle.js'),
  bundle: true,
  // The launcher relies on it.
  charset: 'ascii',
  external: EXTERNAL,
  plugins: [deferred, apart(/[\\/]gen[\\/]descriptors\.js$/, DESCRIPTORS)],
  // A script with a code cache cannot import; what is imported lazily is required lazily.
  supported: { 'dynamic-import': false },
  // Identifiers stay: stack traces are for people.
  minifySyntax: true,
  minifyWhitespace: true,
  define: { 'import.meta.url': 'bundleUrl' },
  banner: { js: "const bundleUrl = require('node:url').pathToFileURL(__filename).href;" },
});

copyFileSync(join('tools', 'launcher.cjs'), LAUNCHER);
for (const program of [LAUNCHER, join(OUT, 'client', 'cli', 'main.js')]) chmodSync(program, 0o755);
await writeCodeCache(LAUNCHER);
