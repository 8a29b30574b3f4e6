import type { Plugin } from 'esbuild';

/** Modules of Node that a library loads at once and hardly ever uses. */
const DEFERRED = [
  // For subcommands that are programs of their own; the daemon has none, and the module is most of what commander costs.
  { module: 'node:child_process', importer: /[\\/]commander[\\/]/ },
] as const;

const NAMESPACE = 'deferred';

/** Loads such a module when something of it is asked for. */
export const deferred: Plugin = {
  name: NAMESPACE,
  setup: (build) => {
    for (const { module, importer } of DEFERRED)
      build.onResolve({ filter: new RegExp(`^${module}$`) }, (found) =>
        importer.test(found.importer) ? { path: module, namespace: NAMESPACE } : undefined,
      );
    build.onLoad({ filter: /./, namespace: NAMESPACE }, ({ path }) => ({
      contents: `module.exports = new Proxy({}, { get: (_, name) => require('${path}')[name] });`,
    }));
  },
};

/** Leaves a module, which is loaded lazily, outside the bundle: in `file` beside it. */
export const apart = (module: RegExp, file: string): Plugin => ({
  name: file,
  setup: (build) => build.onResolve({ filter: module }, () => ({ path: `./${file}`, external: true })),
});
