/**
 * Generates `gen/` from `proto/`: the codec (pbjs), its types, the services for both ends, the check for required fields,
 * and the descriptors with their comments for server reflection.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { contractFiles, loadContract } from './codegen/contract.js';
import { mergeDescriptorSets } from './codegen/descriptor-sets.js';
import { messagesModule, messagesTypes } from './codegen/messages.js';
import { REQUIRED_TYPES, requiredModule } from './codegen/required.js';
import { servicesModule } from './codegen/services.js';

const OUT = 'gen';
const bin = (name: string): string => join('node_modules', '.bin', name);
const write = (file: string, text: string): void => writeFileSync(join(OUT, file), text);

const DESCRIPTORS_TYPES = `/** The contract, health and channelz as a serialized google.protobuf.FileDescriptorSet, comments included. Import it lazily: it is large. */
export declare function descriptors(): Buffer;
`;

const PBJS_OPTIONS = [
  ['--target', join('tools', 'codegen', 'static-target.cjs')],
  ['--wrap', 'es6'],
  ['--dependency', './wire.js'],
  ['--path', 'proto'],
  ['--out', join(OUT, 'codec.js')],
].flat();
const PBJS_FLAGS = [
  'keep-case',
  'es6',
  'no-create',
  'no-verify',
  'no-convert',
  'no-delimited',
  'no-typeurl',
  'no-service',
  'no-comments',
];

rmSync(OUT, { recursive: true, force: true });
mkdirSync(OUT);
execFileSync(bin('pbjs'), [...PBJS_OPTIONS, ...PBJS_FLAGS.map((flag) => `--${flag}`), ...contractFiles()], { stdio: 'inherit' });
for (const file of ['wire.js', 'wire.d.ts']) copyFileSync(join('tools', 'codegen', file), join(OUT, file));
/** A FileDescriptorSet. */
const descriptorSet = (...input: string[]): Buffer =>
  execFileSync(bin('buf'), ['build', ...input, '--output', '-#format=binpb'], { maxBuffer: 2 ** 26 });
const HEALTH = join('node_modules', 'grpc-health-check', 'proto');
const GRPC_JS = join('node_modules', '@grpc', 'grpc-js', 'proto');
const descriptors = mergeDescriptorSets([
  descriptorSet(),
  descriptorSet(HEALTH),
  descriptorSet(GRPC_JS, '--path', join(GRPC_JS, 'channelz.proto')),
]);

const contract = loadContract();
write('messages.js', messagesModule(contract));
write('messages.d.ts', messagesTypes(contract));
write('services.ts', servicesModule(contract));
write('required.js', requiredModule(contract));
write('required.d.ts', REQUIRED_TYPES);
// As text, so that it is found wherever the module is: in gen/, in dist/gen/ and in the daemon's bundle.
write('descriptors.js', `export const descriptors = () => Buffer.from('${descriptors.toString('base64')}', 'base64');\n`);
write('descriptors.d.ts', DESCRIPTORS_TYPES);
