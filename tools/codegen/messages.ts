import protobuf from 'protobufjs';
import { type Contract, fullName, inOneof, isOptional, jsDoc, localName } from './contract.js';

/** `gen/messages.js`: the codec's messages and enums under flat names. */
export const messagesModule = ({ messages, enums }: Contract): string =>
  [
    "import { google, simkvm } from './codec.js';\n",
    ...[...messages, ...enums].map((item) => `export const ${localName(item)} = ${fullName(item)};`),
    '',
  ].join('\n');

/** `gen/messages.d.ts`: their types, with the comments of the contract. */
export const messagesTypes = ({ messages, enums }: Contract): string =>
  [HEAD, ...enums.map(enumTypes), ...messages.map(messageTypes)].join('\n');

const HEAD = `/** What can be given for a 64-bit field: a number must be a safe integer. */
export type Int64Init = bigint | number;

/** The codec of a message. \`T\` is what decoding gives, \`I\` what can be encoded. */
export interface MessageType<T, I> {
  encode(message: I): { finish(): Buffer };
  /** @throws RangeError if the bytes are no such message */
  decode(bytes: Uint8Array): T;
}
`;

const enumTypes = (type: protobuf.Enum): string => {
  const name = localName(type);
  const values = Object.entries(type.values).map(
    ([value, number]) => `${jsDoc(type.comments[value] ?? null, '  ')}  readonly ${value}: ${number};\n`,
  );
  return `${jsDoc(type.comment)}export declare const ${name}: {\n${values.join('')}  /** The name of a number. */\n  readonly [value: number]: string | undefined;\n};\n`;
};

const messageTypes = (message: protobuf.Type): string => {
  const name = localName(message);
  const decoded = message.fieldsArray.map((field) => `${jsDoc(field.comment, '  ')}  ${field.name}: ${decodedType(field)};\n`);
  const initial = message.fieldsArray.map((field) => `${jsDoc(field.comment, '  ')}  ${field.name}?: ${initType(field)};\n`);
  const oneofs = message.oneofsArray.filter((oneof) => !oneof.isProto3Optional).map(oneofType);
  return (
    `${jsDoc(message.comment)}export interface ${name} {\n${decoded.join('')}${oneofs.join('')}}\n` +
    `/** What can be encoded as ${name}. */\nexport interface ${name}Init {\n${initial.join('')}}\n` +
    `export declare const ${name}: MessageType<${name}, ${name}Init>;\n`
  );
};

const oneofType = (oneof: protobuf.OneOf): string =>
  `  /** Which of them there is. */\n  readonly ${oneof.name}?: ${oneof.oneof.map((field) => `'${field}'`).join(' | ')};\n`;

const decodedType = (field: protobuf.Field): string => {
  const element = elementType(field, 'decoded');
  if (field instanceof protobuf.MapField) return `{ [key: string]: ${element} }`;
  if (field.repeated) return `${element}[]`;
  const nullable = isOptional(field) || inOneof(field) || field.resolvedType instanceof protobuf.Type;
  return nullable ? `${element} | null` : element;
};

const initType = (field: protobuf.Field): string => {
  const element = elementType(field, 'init');
  if (field instanceof protobuf.MapField) return `{ readonly [key: string]: ${element} }`;
  return field.repeated ? `readonly ${element.includes(' ') ? `(${element})` : element}[]` : `${element} | null`;
};

const elementType = (field: protobuf.Field, form: 'decoded' | 'init'): string => {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Type) return `${localName(resolvedType)}${form === 'init' ? 'Init' : ''}`;
  if (resolvedType instanceof protobuf.Enum) return 'number';
  return scalarType(field, form);
};

const scalarType = (field: protobuf.Field, form: 'decoded' | 'init'): string => {
  switch (field.type) {
    case 'string':
      return 'string';
    case 'bool':
      return 'boolean';
    case 'bytes':
      return 'Uint8Array';
    case 'double':
    case 'int32':
    case 'uint32':
    case 'sint32':
      return 'number';
    case 'int64':
    case 'uint64':
      return form === 'init' ? 'Int64Init' : 'bigint';
    default:
      throw new Error(`${fullName(field)}: tools/codegen/wire.js has no ${field.type}`);
  }
};
