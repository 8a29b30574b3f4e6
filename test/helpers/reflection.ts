import { credentials, loadPackageDefinition, type ServiceClientConstructor } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import descriptor from 'protobufjs/ext/descriptor/index.js';

const PROTO = 'node_modules/@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto';

/** What a test looks at of a google.protobuf.FileDescriptorProto. */
export interface ReflectedFile {
  readonly sourceCodeInfo: { readonly location: readonly { readonly leadingComments?: string }[] };
}

const isReflectedFile = (value: unknown): value is ReflectedFile =>
  typeof value === 'object' && value !== null && 'sourceCodeInfo' in value;

const isConstructor = (value: unknown): value is ServiceClientConstructor => typeof value === 'function';

/** The file that declares `symbol`, as the daemon's reflection service has it. */
export const reflectedFile = async (address: string, symbol: string): Promise<ReflectedFile> => {
  const loaded = loadPackageDefinition(loadSync(PROTO, { keepCase: true, oneofs: true }));
  const ServerReflection = Reflect.get(
    Object(Reflect.get(Object(Reflect.get(Object(loaded.grpc), 'reflection')), 'v1')),
    'ServerReflection',
  );
  if (!isConstructor(ServerReflection)) throw new Error('no reflection service in the proto');
  const client = new ServerReflection(address, credentials.createInsecure());
  try {
    const stream = client.ServerReflectionInfo();
    const answer = await new Promise<{ file_descriptor_response: { file_descriptor_proto: Buffer[] } }>((resolve, reject) => {
      stream.on('data', resolve);
      stream.on('error', reject);
      stream.write({ file_containing_symbol: symbol });
    });
    stream.end();
    const [bytes] = answer.file_descriptor_response.file_descriptor_proto;
    const file: unknown = descriptor.FileDescriptorProto.decode(bytes ?? new Uint8Array());
    if (!isReflectedFile(file)) throw new Error(`${symbol} was described without source information`);
    return file;
  } finally {
    client.close();
  }
};
