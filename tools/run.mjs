/** Runs a tool that is written in TypeScript: `node tools/run.mjs generate` bundles and runs tools/generate.ts. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const [, , name, ...args] = process.argv;
const outfile = join(process.cwd(), 'node_modules', '.cache', 'simkvm', `${name}.mjs`);
await mkdir(join(outfile, '..'), { recursive: true });
await build({
  entryPoints: [join('tools', `${name}.ts`)],
  outfile,
  bundle: true,
  packages: 'external',
  platform: 'node',
  format: 'esm',
  logLevel: 'warning',
});
process.argv = [process.argv[0] ?? 'node', outfile, ...args];
await import(pathToFileURL(outfile).href);
