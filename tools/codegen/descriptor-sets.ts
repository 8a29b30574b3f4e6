import protobuf from 'protobufjs/minimal.js';

const { Reader, Writer } = protobuf;
/** Field 1 of a FileDescriptorSet, `file`, and field 1 of a FileDescriptorProto, `name`: both length-delimited. */
const FIELD_1 = 10;

/** The files of a FileDescriptorSet, untouched, by name. */
function* filesOf(set: Uint8Array): Generator<readonly [string, Uint8Array]> {
  const reader = Reader.create(set);
  while (reader.pos < reader.len) {
    if (reader.uint32() !== FIELD_1) throw new Error('not a FileDescriptorSet');
    const file = reader.bytes();
    const inside = Reader.create(file);
    if (inside.uint32() !== FIELD_1) throw new Error('a file without a name');
    yield [inside.string(), file];
  }
}

/** One FileDescriptorSet of several, each file once: several import google/protobuf/any.proto. */
export const mergeDescriptorSets = (sets: readonly Uint8Array[]): Buffer => {
  const files = new Map(sets.flatMap((set) => [...filesOf(set)]));
  const writer = Writer.create();
  for (const file of files.values()) writer.uint32(FIELD_1).bytes(file);
  return Buffer.from(writer.finish());
};
