import { KVM_CAP } from '../../server/kernel/uapi/capabilities.js';
import { IOCTLS, type IoctlEntry, type IoctlFd } from '../../server/kernel/uapi/ioctls.js';
import type { Field, Fields, Struct } from '../../server/kernel/uapi/struct.js';
import { kvmSystem } from '../../server/rpc/services/kvm-system.js';
import { kvmVcpu } from '../../server/rpc/services/kvm-vcpu.js';
import { kvmVm } from '../../server/rpc/services/kvm-vm.js';
import { GENERATED, hex, table } from './markdown.js';
import { Probe } from './probe.js';

const FILES: readonly (readonly [IoctlFd, string])[] = [
  ['system', '`/dev/kvm`'],
  ['vm', 'A VM'],
  ['vcpu', 'A vCPU'],
  ['device', 'A device of KVM_CREATE_DEVICE'],
  ['sev', '`/dev/sev`'],
];

const SERVICES = { system: ['KvmSystem', kvmSystem], vm: ['KvmVm', kvmVm], vcpu: ['KvmVcpu', kvmVcpu] } as const;

const isTyped = (fd: IoctlFd): fd is keyof typeof SERVICES => fd in SERVICES;

/** The RPCs that issue an ioctl on a kind of file. */
const typedCalls = (name: string, fd: IoctlFd): string => {
  if (!isTyped(fd)) return '';
  const [service, methods] = SERVICES[fd];
  return Object.entries(methods)
    .filter(([, method]) => method.syscall === name)
    .map(([rpc]) => `${service}/${rpc.slice(0, 1).toUpperCase()}${rpc.slice(1)}`)
    .join(', ');
};

const argument = ({ arg }: IoctlEntry): string => {
  if (arg.kind === 'none') return 'ignored';
  if (arg.kind === 'value') return 'a value';
  const tail = arg.tail === null ? '' : ` + ${arg.tail.size} for each \`${arg.tail.count}\``;
  const name = arg.struct === null ? `\`${arg.name}\`` : `[\`${arg.name}\`](#${arg.name})`;
  return `${name} ${arg.direction}, ${arg.size} bytes${tail}`;
};

const answer = (probe: Probe, fd: IoctlFd, entry: IoctlEntry): string => {
  const refusal = probe.refusal(fd, entry);
  return refusal === null ? '' : `left out: ${refusal.errno}`;
};

const ioctlTables = (probe: Probe): string =>
  FILES.map(([fd, title]) => {
    const entries = [...IOCTLS].filter(([, { fds }]) => fds.includes(fd));
    const rows = entries.map(([name, entry]) => [
      name,
      hex(entry.request),
      argument(entry),
      typedCalls(name, fd),
      answer(probe, fd, entry),
    ]);
    return `### ${title}\n\n${table(['ioctl', 'request', 'argument', 'typed RPC', 'here'], rows)}\n`;
  }).join('\n');

const typeOf = ({ kind, size, inner }: Field<unknown>): string => {
  if (inner?.kind === 'struct') return `\`${inner.struct.name}\``;
  if (inner?.kind === 'array') {
    const [first] = inner.elements;
    return first === undefined ? 'nothing' : `${typeOf(first)} × ${inner.elements.length}`;
  }
  return kind === 'bytes' ? `${size} bytes` : `${kind === 'uint' ? 'u' : 's'}${8 * size}`;
};

/** The structures that ioctls take, and those inside them. */
const structures = (): Struct<Fields>[] => {
  const found = new Map<string, Struct<Fields>>();
  const add = (struct: Struct<Fields>): void => {
    if (found.has(struct.name)) return;
    found.set(struct.name, struct);
    for (const { inner } of Object.values(struct.fields)) {
      if (inner?.kind === 'struct') add(inner.struct);
      if (inner?.kind === 'array')
        for (const { inner: element } of inner.elements) if (element?.kind === 'struct') add(element.struct);
    }
  };
  for (const { arg } of IOCTLS.values()) if (arg.kind === 'struct' && arg.struct !== null) add(arg.struct);
  return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
};

const structureTables = (): string =>
  structures()
    .map(({ name, size, fields }) => {
      const rows = Object.entries(fields).map(([field, type]) => [String(type.offset), `\`${field}\``, typeOf(type)]);
      return `### ${name}\n\n${size} bytes.\n\n${table(['offset', 'field', 'type'], rows)}\n`;
    })
    .join('\n');

const capabilityTable = (probe: Probe): string => {
  const shown = (value: number): string => (value === 0 ? '' : hex(value));
  return table(
    ['capability', 'number', 'on /dev/kvm', 'on a VM'],
    Object.entries(KVM_CAP).map(([name, number]) => [
      `KVM_CAP_${name}`,
      String(number),
      shown(probe.capability('system', number)),
      shown(probe.capability('vm', number)),
    ]),
  );
};

/** `docs/kvm-api.md`: the table of ioctls, the layouts of their structures, and what a default host answers to them. */
export const kvmApiPage = (): string => {
  const probe = new Probe();
  return `# KVM's user API

${GENERATED}

Every ioctl can be made as a typed RPC of its file's service, where the table names one, and through \`SyscallService.Ioctl\` with
its request number; both end in the same functions of the simulated kernel. An unknown request is EINVAL on \`/dev/kvm\` and on a
vCPU, ENOTTY on a VM and on every other file. *Left out* is what a kernel built without it does not know: SMM, Xen, Hyper-V, nested
guests, a virtual PMU and the kvmclock page. Its capability is 0, CPUID does not offer it, and its ioctls are refused as below.

## Ioctls

${ioctlTables(probe)}
## Capabilities

What KVM_CHECK_EXTENSION answers on a default host (AMD, SEV and SEV-ES on); empty: 0, not offered.

${capabilityTable(probe)}

## Structures

All integers are little-endian. Bytes that no field covers are padding: ignored, and written as zero.

${structureTables()}`;
};
