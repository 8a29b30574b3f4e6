import protobuf from 'protobufjs';
import { describe, expect, test } from 'vitest';
import { loadContract } from '../../../tools/codegen/contract.js';

/** The example of an RPC's comment: what stands between `-d '` and `'`, and the path behind the address. */
const EXAMPLE = /^grpcurl -plaintext (?:-H '[^']*' )?-d (?:'(?<json>[^']*)'|@) localhost:7341 (?<path>\S+)(?: < \S+)?$/m;

/** Names that a JSON value has and the message has not, and values of enums that there are not. */
const unknownNames = (value: unknown, type: protobuf.Type, path: string): string[] => {
  if (typeof value !== 'object' || value === null) return [`${path} is no object`];
  return Object.entries(value).flatMap(([name, item]) => {
    const field = type.fields[name]?.resolve();
    if (field === undefined) return [`${path}${name}`];
    const items: unknown[] = field.repeated && Array.isArray(item) ? item : [item];
    return items.flatMap((each) => unknownInField(each, field, `${path}${name}.`));
  });
};

const unknownInField = (value: unknown, field: protobuf.Field, path: string): string[] => {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Type) return unknownNames(value, resolvedType, path);
  if (resolvedType instanceof protobuf.Enum && typeof value === 'string' && !(value in resolvedType.values))
    return [`${path}${value}`];
  return [];
};

describe.each(loadContract().services.map((service) => ({ service, name: service.name })))('$name', ({ service }) => {
  test.each(service.methodsArray.map((method) => ({ method, name: method.name })))(
    '$name says what there is to know',
    ({ method }) => {
      const comment = method.comment ?? '';
      expect(comment).toMatch(/^Errno: .*(E[A-Z0-9]+|none)/m);
      expect(comment).toMatch(/^Kernel: \S+/m);
      const example = EXAMPLE.exec(comment)?.groups;
      expect(example?.path).toBe(`${service.fullName.slice(1)}/${method.name}`);
      const request = method.resolvedRequestType;
      if (example?.json === undefined || request === null) return;
      expect(unknownNames(JSON.parse(example.json), request, '')).toEqual([]);
    },
  );
});
