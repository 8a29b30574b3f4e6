import type { SystemCalls } from '../../conformance/system-calls.js';
import type { GuestCase } from './case.js';
import { GUEST_EXPLANATIONS, type GuestDifference } from './explained.js';
import { GuestMachine, type GuestOutcome } from './machine.js';

/** What became of a case: the same on both, a difference that is explained (by that name), or one that is not. */
export type Verdict =
  | { readonly kind: 'same'; readonly exit: string }
  | { readonly kind: 'explained'; readonly name: string }
  | { readonly kind: 'different'; readonly differences: readonly GuestDifference[] };

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

const ramDifferences = (real: Uint8Array, simulated: Uint8Array): GuestDifference[] => {
  if (Buffer.compare(real, simulated) === 0) return [];
  const at = real.findIndex((byte, index) => byte !== simulated[index]);
  const shown = (ram: Uint8Array): string => Buffer.from(ram.subarray(at, at + 16)).toString('hex');
  return [{ field: `ram ${hex(at)}`, real: shown(real), simulated: shown(simulated) }];
};

/** Everything in which two outcomes differ. */
const differences = (real: GuestOutcome, simulated: GuestOutcome): GuestDifference[] => {
  const found: GuestDifference[] = [];
  const note = (field: string, a: string, b: string): void => {
    if (a !== b) found.push({ field, real: a, simulated: b });
  };
  note('exit', real.exit, simulated.exit);
  for (const name of ['rip', 'rflags'] as const) note(name, hex(real.registers[name]), hex(simulated.registers[name]));
  for (const [name, value] of Object.entries(real.registers)) {
    const other = Object.entries(simulated.registers).find(([key]) => key === name)?.[1] ?? 0n;
    if (name !== 'rip' && name !== 'rflags') note(name, hex(value), hex(other));
  }
  for (const name of ['cr0', 'cr2', 'cr3', 'cr4', 'efer'] as const) note(name, hex(real.sregs[name]), hex(simulated.sregs[name]));
  for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss'] as const) {
    note(`${name}.selector`, hex(real.sregs[name].selector), hex(simulated.sregs[name].selector));
    note(`${name}.base`, hex(real.sregs[name].base), hex(simulated.sregs[name].base));
  }
  return [...found, ...ramDifferences(real.ram, simulated.ram)];
};

/** Runs cases on a vCPU of this machine and on a simulated one. */
export class GuestComparison {
  private constructor(
    private readonly real: GuestMachine,
    private readonly simulated: GuestMachine,
  ) {}

  static async create(real: SystemCalls, simulated: SystemCalls): Promise<GuestComparison> {
    return new GuestComparison(await GuestMachine.create(real), await GuestMachine.create(simulated));
  }

  /** The machines cannot be used for another case. */
  get stuck(): boolean {
    return this.real.stuck || this.simulated.stuck;
  }

  async compare(guest: GuestCase): Promise<Verdict> {
    const [real, simulated] = await Promise.all([this.real.execute(guest), this.simulated.execute(guest)]);
    const found = differences(real, simulated);
    const explanation = GUEST_EXPLANATIONS.find((known) => known.explains({ guest, real, simulated, differences: found }));
    if (found.length > 0 && explanation !== undefined) return { kind: 'explained', name: explanation.name };
    return found.length === 0 ? { kind: 'same', exit: real.exit } : { kind: 'different', differences: found };
  }
}
