import protobuf from 'protobufjs';
import descriptor from 'protobufjs/ext/descriptor/index.js';
import { descriptors } from '../../gen/descriptors.js';

/** One step from a message to a field of it. */
interface Step {
  readonly name: string;
  readonly repeated: boolean;
}

/** One scalar field of a request, however deep, as the descriptor set has it. */
export interface RequestField {
  /** From the request down. */
  readonly path: readonly Step[];
  /** `region.slot` */
  readonly label: string;
  /** `int32`, `uint64`, `bytes`, `string`, `bool` or `enum`. */
  readonly type: string;
  /** The oneof that it is a member of, by its label: `data`. */
  readonly oneof: string | null;
}

export type Request = { [field: string]: unknown };

const labelOf = (path: readonly Step[]): string => path.map(({ name }) => name).join('.');

/** A proto3 `optional` is a oneof to the descriptor, named with an underscore. */
const oneofOf = (oneof: protobuf.OneOf | null, path: readonly Step[]): string | null =>
  oneof === null || oneof.name.startsWith('_') ? null : [...path.map(({ name }) => name), oneof.name].join('.');

/** protobufjs adds `fromDescriptor` to its Root when the descriptor extension is loaded; its types do not say so. */
const root: protobuf.Root = Reflect.apply(Reflect.get(protobuf.Root, 'fromDescriptor'), protobuf.Root, [
  descriptor.FileDescriptorSet.decode(descriptors()),
]);

const walk = (type: protobuf.Type, path: readonly Step[]): RequestField[] =>
  type.fieldsArray.flatMap((field): RequestField[] => {
    const { resolvedType } = field.resolve();
    const here = [...path, { name: field.name, repeated: field.repeated }];
    if (resolvedType instanceof protobuf.Type) return walk(resolvedType, here);
    return [
      {
        path: here,
        label: labelOf(here),
        type: resolvedType === null ? field.type : 'enum',
        oneof: oneofOf(field.partOf, path),
      },
    ];
  });

/** Every scalar field of an RPC's request, by the RPC's path. */
export const requestFields = (path: string): RequestField[] => {
  const [, service = '', method = ''] = path.split('/');
  const found = root.lookupService(service).methods[method];
  if (found === undefined) throw new Error(`no method ${path}`);
  return walk(root.lookupType(found.requestType.replace(/^\./, '')), []);
};

const isRequest = (value: unknown): value is Request => typeof value === 'object' && value !== null && !Array.isArray(value);

/** A copy of `request` with one field set, or (undefined) left out; lists on the way have one entry. */
export const withField = (request: Request, [step, ...rest]: readonly Step[], value: unknown): Request => {
  if (step === undefined) return request;
  const { [step.name]: present, ...others } = request;
  const first = Array.isArray(present) ? present[0] : present;
  const inner = rest.length === 0 ? value : withField(isRequest(first) ? first : {}, rest, value);
  if (inner === undefined) return others;
  return { ...others, [step.name]: step.repeated ? [inner] : inner };
};

/** Whether a request has a field, however deep. */
export const hasField = (request: Request, [step, ...rest]: readonly Step[]): boolean => {
  if (step === undefined) return true;
  const present = request[step.name];
  const first = Array.isArray(present) ? present[0] : present;
  return first !== undefined && (rest.length === 0 || (isRequest(first) && hasField(first, rest)));
};
