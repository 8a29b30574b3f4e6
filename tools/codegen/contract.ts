import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import protobuf from 'protobufjs';

const PROTO = 'proto';
const PACKAGE = 'simkvm/v1';

/** The contract's own files and the two vendored ones that travel with it, as paths under `proto/`. */
export const contractFiles = (): string[] => [
  ...readdirSync(join(PROTO, PACKAGE))
    .sort()
    .map((file) => `${PACKAGE}/${file}`),
  'google/rpc/error_details.proto',
  'google/rpc/status.proto',
];

export interface Contract {
  readonly messages: readonly protobuf.Type[];
  readonly enums: readonly protobuf.Enum[];
  readonly services: readonly protobuf.Service[];
}

/** Parses the contract, comments and annotations included. */
export const loadContract = (): Contract => {
  const root = new protobuf.Root();
  const bundled = join('node_modules', 'protobufjs');
  root.resolvePath = (_origin, target) => join(target.startsWith('google/protobuf/') ? bundled : PROTO, target);
  root.loadSync(contractFiles(), { keepCase: true, alternateCommentMode: true });
  root.resolveAll();
  const all = [
    ...descendants(root.lookup('simkvm.v1')),
    ...descendants(root.lookup('google.rpc')),
    root.lookupType('google.protobuf.Any'),
  ];
  return {
    messages: all.filter((item) => item instanceof protobuf.Type),
    enums: all.filter((item) => item instanceof protobuf.Enum),
    services: all.filter((item) => item instanceof protobuf.Service),
  };
};

function* descendants(object: protobuf.ReflectionObject | null): Iterable<protobuf.ReflectionObject> {
  if (!(object instanceof protobuf.Namespace)) return;
  for (const nested of object.nestedArray) {
    yield nested;
    yield* descendants(nested);
  }
}

/** Full name without the leading dot: `simkvm.v1.KvmVcpuEvents.Nmi`. */
export const fullName = (object: protobuf.ReflectionObject): string => object.fullName.replace(/^\./, '');

/** Name in generated code: `KvmVcpuEventsNmi`. */
export const localName = (object: protobuf.ReflectionObject): string =>
  fullName(object)
    .replace(/^(simkvm\.v1|google\.rpc|google\.protobuf)\./, '')
    .replaceAll('.', '');

/** Comment of an element as JSDoc, indented. Empty if it has none. */
export const jsDoc = (comment: string | null | undefined, indent = ''): string => {
  if (comment === null || comment === undefined) return '';
  const lines = comment.replaceAll('*/', '* /').split('\n');
  if (lines.length === 1) return `${indent}/** ${lines[0]} */\n`;
  return `${indent}/**\n${lines.map((line) => `${indent} * ${line}`.trimEnd()).join('\n')}\n${indent} */\n`;
};

export const isOptional = (field: protobuf.Field): boolean => field.options?.proto3_optional === true;

const mayBeLeftOut = (object: protobuf.Field): boolean => object.options?.['(google.api.field_behavior)'] === 'OPTIONAL';

/** Member of a oneof that is written as such, unlike the one that `optional` stands for. */
export const inOneof = (field: protobuf.Field): boolean => field.partOf !== null && !isOptional(field);

/** Whether a request without this field is refused: `optional` scalars and messages that are not marked OPTIONAL. */
export const isRequired = (field: protobuf.Field): boolean =>
  !field.repeated && !(field instanceof protobuf.MapField) && !inOneof(field) && !mayBeLeftOut(field) && hasPresence(field);

const hasPresence = (field: protobuf.Field): boolean => isOptional(field) || field.resolvedType instanceof protobuf.Type;

/** Oneofs of which one member must be given: those with no member marked OPTIONAL. */
export const requiredOneofs = (message: protobuf.Type): protobuf.OneOf[] =>
  message.oneofsArray.filter((oneof) => !oneof.isProto3Optional && !oneof.fieldsArray.some(mayBeLeftOut));
