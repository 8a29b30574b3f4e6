/**
 * Builds `dist/`: generates `gen/`, compiles everything, and bundles the daemon, since reading hundreds of small modules
 * is most of a cold start. What the daemon needs only later it imports lazily, and that becomes chunks of their own.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';

const OUT = 'dist';
const PROGRAMS = ['client/cli/main.js', 'server/main.js', 'simkvmd.mjs'];

/** Loaded as they are: they find files beside themselves, and are imported lazily. */
const EXTERNAL = ['@grpc/proto-loader', '@grpc/reflection', 'grpc-health-check', 'iced-x86', 'pino'];

/** CommonJS modules in the bundle want `require`, and grpc-js looks for its protos from `__dirname` (channelz). */
const BANNER = [
  "import { createRequire as __createRequire } from 'node:module';",
  "import { dirname as __dirnameOf } from 'node:path';",
  'const require = __createRequire(import.meta.url);',
  "const __dirname = __dirnameOf(require.resolve('@grpc/grpc-js'));",
].join('\n');

const run = (bin: string, ...args: string[]): void => {
  execFileSync(join('node_modules', '.bin', bin), args, { stdio: 'inherit' });
};

rmSync(OUT, { recursive: true, force: true });
execFileSync(process.execPath, [join('tools', 'run.mjs'), 'generate'], { stdio: 'inherit' });
run('tsc', '-p', 'tsconfig.json');

mkdirSync(join(OUT, 'gen'), { recursive: true });
for (const file of readdirSync('gen'))
  if (/\.(js|d\.ts|binpb)$/.test(file)) copyFileSync(join('gen', file), join(OUT, 'gen', file));

await build({
  entryPoints: { simkvmd: join('server', 'main.ts') },
  outdir: OUT,
  outExtension: { '.js': '.mjs' },
  chunkNames: 'chunks/[name]-[hash]',
  bundle: true,
  splitting: true,
  platform: 'node',
  target: 'node20',
  format: 'esm',
  external: EXTERNAL,
  // Identifiers stay: stack traces are for people.
  minifySyntax: true,
  minifyWhitespace: true,
  banner: { js: BANNER },
  logLevel: 'warning',
});

for (const program of PROGRAMS) chmodSync(join(OUT, program), 0o755);
