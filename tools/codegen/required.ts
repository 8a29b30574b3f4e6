import protobuf from 'protobufjs';
import { type Contract, fullName, isRequired, requiredOneofs } from './contract.js';

/**
 * `gen/required.js`: finds the first field of a request that must be given and is not. The code is straight comparisons,
 * since every call passes here.
 */
export const requiredModule = ({ services }: Contract): string => {
  const checks = new Map<protobuf.Type, string>();
  const lines: string[] = [];
  const methods = services.flatMap((service) =>
    service.methodsArray.map((method) => {
      const request = method.resolvedRequestType;
      if (request === null) throw new Error(`${fullName(method)} is not resolved`);
      return `  ['/${fullName(service)}/${method.name}', ${checkOf(request, checks, lines)}],`;
    }),
  );
  return `${HELPERS}${lines.join('\n')}
const checks = new Map([\n${methods.join('\n')}\n]);

export const missingField = (path, request) => (checks.get(path) ?? nothing)(request, '');
`;
};

const HELPERS = `const nothing = () => null;

/** What the check says of the first item that it objects to. */
const first = (items, check) => {
  for (let index = 0; index < items.length; index++) {
    const missing = check(items[index], index);
    if (missing !== null) return missing;
  }
  return null;
};

`;

export const REQUIRED_TYPES = `/**
 * The first field that a decoded request must have and has not, as a path from the request (\`region.slot\`), or null.
 * @param path of the RPC: \`/simkvm.v1.KvmVm/SetUserMemoryRegion\`
 */
export declare function missingField(path: string, request: object): string | null;
`;

/** Name of the function that checks a message; writes it first if there is none. Messages without such fields need none. */
const checkOf = (message: protobuf.Type, checks: Map<protobuf.Type, string>, lines: string[]): string => {
  const known = checks.get(message);
  if (known !== undefined) return known;
  const terms = [
    ...message.fieldsArray.flatMap((field) => fieldTerms(field, checks, lines)),
    ...requiredOneofs(message).map(oneofTerm),
  ];
  const name = terms.length === 0 ? 'nothing' : `check_${fullName(message).replaceAll('.', '_')}`;
  checks.set(message, name);
  if (terms.length > 0) lines.push(`const ${name} = (m, at) =>\n  ${terms.join(' ??\n  ')};\n`);
  return name;
};

const fieldTerms = (field: protobuf.Field, checks: Map<protobuf.Type, string>, lines: string[]): string[] => {
  const terms = isRequired(field) ? [`(m.${field.name} === null ? \`\${at}${field.name}\` : null)`] : [];
  if (!(field.resolvedType instanceof protobuf.Type) || field instanceof protobuf.MapField) return terms;
  const check = checkOf(field.resolvedType, checks, lines);
  if (check === 'nothing') return terms;
  if (field.repeated)
    return [...terms, `first(m.${field.name}, (item, index) => ${check}(item, \`\${at}${field.name}[\${index}].\`))`];
  return [...terms, `(m.${field.name} === null ? null : ${check}(m.${field.name}, \`\${at}${field.name}.\`))`];
};

const oneofTerm = (oneof: protobuf.OneOf): string => `(m.${oneof.name} === undefined ? \`\${at}${oneof.name}\` : null)`;
