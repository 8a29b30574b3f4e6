import { describe, expect, test } from 'vitest';
import * as irq from '../../../server/kernel/uapi/irq-structs.js';
import * as kvm from '../../../server/kernel/uapi/kvm-structs.js';
import * as sev from '../../../server/kernel/uapi/sev-structs.js';
import type { Field, Fields, Struct } from '../../../server/kernel/uapi/struct.js';
import * as x86 from '../../../server/kernel/uapi/x86-structs.js';
import { loadContract } from '../../../tools/codegen/contract.js';

/** Parts that have another shape in a message: a union is a oneof, an array behind the structure is a list. */
const OTHER_SHAPE: Readonly<Record<string, { struct: readonly string[]; message: readonly string[] }>> = {
  kvm_irq_level: { struct: [], message: ['status'] },
  kvm_irqchip: { struct: ['chip'], message: ['dummy', 'pic', 'ioapic'] },
  kvm_irq_routing_entry: { struct: ['u'], message: ['irqchip', 'msi', 'pad'] },
  kvm_irq_routing: { struct: [], message: ['entries'] },
  kvm_signal_mask: { struct: [], message: ['sigset'] },
  kvm_msrs: { struct: [], message: ['entries'] },
  kvm_msr_list: { struct: [], message: ['indices'] },
  kvm_cpuid2: { struct: [], message: ['entries'] },
  kvm_guest_debug: { struct: ['debugreg'], message: ['arch'] },
};

const PADDING = /^(pad\d*|padding\d*|reserved)$/;

const isStruct = (value: unknown): value is Struct<Fields> => typeof value === 'object' && value !== null && 'decode' in value;

const pascalCase = (name: string): string => name.replace(/(?:^|_)([a-z0-9])/g, (_match, letter: string) => letter.toUpperCase());

/** What a member of this width is in a message. */
const wireTypes = ({ kind, size }: Field<unknown>): RegExp => {
  if (kind === 'bytes') return /^bytes$/;
  if (kind === 'struct') return /^[A-Z]/;
  if (kind === 'array') return /./;
  return size === 8 ? /^u?int64$/ : /^(u?int32|[A-Z]\w+)$/;
};

describe('messages and the structures whose names they have', () => {
  const messages = new Map(loadContract().messages.map((message) => [message.name, message]));
  const exported: readonly unknown[] = [kvm, x86, irq, sev].flatMap((module) => Object.values<unknown>(module));
  const pairs = exported.filter(isStruct).flatMap((struct) => {
    const message = messages.get(pascalCase(struct.name));
    return message === undefined ? [] : [{ name: struct.name, struct, message }];
  });

  test('there are many', () => {
    expect(pairs.length).toBeGreaterThan(50);
  });

  test.each(pairs)('$name', ({ name, struct, message }) => {
    const shape = OTHER_SHAPE[name] ?? { struct: [], message: [] };
    const members = Object.keys(struct.fields).filter((member) => !PADDING.test(member) && !shape.struct.includes(member));
    const fields = Object.keys(message.fields).filter((field) => !field.endsWith('_bytes') && !shape.message.includes(field));
    expect(fields.sort()).toEqual(members.sort());
    for (const member of members) {
      const layout = struct.fields[member];
      if (layout !== undefined) expect(message.fields[member]?.type, member).toMatch(wireTypes(layout));
    }
  });
});
