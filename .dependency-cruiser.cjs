/**
 * The layers: client | rpc -> migration -> kernel -> hardware. Imports point down only, types included.
 */
const BELOW_RPC = '^server/(hardware|kernel|migration)/';

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    {
      name: 'no-cycle',
      comment: 'Two modules that need each other are one concept in two places. Types may refer to each other.',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    {
      name: 'client-imports-generated-code-only',
      comment: 'The client speaks to a server; it does not contain one.',
      severity: 'error',
      from: { path: '^client/' },
      to: { path: '^(server|test|tools)/' },
    },
    {
      name: 'server-not-to-client',
      comment: 'A server does not know its clients.',
      severity: 'error',
      from: { path: '^server/' },
      to: { path: '^(client|test|tools)/' },
    },
    {
      name: 'hardware-knows-no-kernel',
      comment: 'Hardware is built and tested without an operating system.',
      severity: 'error',
      from: { path: '^server/hardware/' },
      to: { path: '^server/(?!hardware/)' },
    },
    {
      name: 'kernel-knows-hardware-only',
      comment: 'The kernel is called; it does not know by whom.',
      severity: 'error',
      from: { path: '^server/kernel/' },
      to: { path: '^server/(?!kernel/|hardware/)' },
    },
    {
      name: 'migration-knows-no-rpc',
      comment: 'The migration protocol is a state machine over an abstract stream.',
      severity: 'error',
      from: { path: '^server/migration/' },
      to: { path: '^server/(?!migration/|kernel/|hardware/)' },
    },
    {
      name: 'no-grpc-below-rpc',
      comment: 'Messages and transport end at the system-call boundary.',
      severity: 'error',
      from: { path: BELOW_RPC },
      to: { path: '^gen/|node_modules/(@grpc|protobufjs|pino|long|commander)/' },
    },
    {
      name: 'nothing-outside-below-rpc',
      comment:
        'The same seed and the same calls give the same bytes: no clock, file, network or process. (module: to load a library; zlib: its synchronous functions are as pure as those of crypto, and pages travel deflated.)',
      severity: 'error',
      from: { path: BELOW_RPC },
      to: { dependencyTypes: ['core'], pathNot: '^(node:)?(crypto|module|zlib)$' },
    },
    {
      name: 'not-to-unresolvable',
      comment: 'What cannot be found cannot be judged.',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: `${__dirname}/tsconfig.json` },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'require', 'node', 'default', 'types'] },
  },
};
