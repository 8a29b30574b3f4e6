import type { Flags } from './flags.js';

const CONDITIONS: Readonly<Record<string, (flags: Flags) => boolean>> = {
  o: (flags) => (flags.carry ^ (flags.carry << 1)) < 0,
  no: (flags) => (flags.carry ^ (flags.carry << 1)) >= 0,
  b: (flags) => flags.carry < 0,
  ae: (flags) => flags.carry >= 0,
  e: (flags) => flags.zero === 0,
  ne: (flags) => flags.zero !== 0,
  be: (flags) => flags.carry < 0 || flags.zero === 0,
  a: (flags) => flags.carry >= 0 && flags.zero !== 0,
  s: (flags) => flags.sign < 0,
  ns: (flags) => flags.sign >= 0,
  p: (flags) => flags.pf === 1,
  np: (flags) => flags.pf === 0,
  l: (flags) => (flags.sign ^ flags.carry ^ (flags.carry << 1)) < 0,
  ge: (flags) => (flags.sign ^ flags.carry ^ (flags.carry << 1)) >= 0,
  le: (flags) => flags.zero === 0 || (flags.sign ^ flags.carry ^ (flags.carry << 1)) < 0,
  g: (flags) => flags.zero !== 0 && (flags.sign ^ flags.carry ^ (flags.carry << 1)) >= 0,
};

/** The condition codes, as mnemonics end in them: 'o', 'ae', ... */
export const CONDITION_CODES: readonly string[] = Object.keys(CONDITIONS);

/** The test of a condition code. */
export function condition(code: string): (flags: Flags) => boolean {
  const test = CONDITIONS[code];
  if (test === undefined) throw new Error(`no condition code ${code}`);
  return test;
}
