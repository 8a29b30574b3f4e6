import { mnemonics } from '../../server/hardware/cpu/compiler.js';
import { GENERATED } from './markdown.js';

const WIDTH = 130;

/** Words in lines of limited length. */
const lines = (words: readonly string[]): string => {
  const filled: string[] = [''];
  for (const word of words) {
    const last = filled.at(-1) ?? '';
    if (last === '') filled[filled.length - 1] = word;
    else if (last.length + 1 + word.length > WIDTH) filled.push(word);
    else filled[filled.length - 1] = `${last} ${word}`;
  }
  return filled.join('\n');
};

/** `docs/cpu.md`: the subset of x86 that guests can execute. */
export const cpuPage = (): string => `# The guest CPU

${GENERATED}

Guests execute real machine code: in real mode, 32-bit protected mode with and without paging, PAE, compatibility mode and 64-bit mode
with tables of 4 and, on a host whose processor has LA57 (Intel's here), of 5 levels. Integer results and flags are exact; they are
tested against what a processor did (\`test/unit/hardware/cpu/native-results.txt\`) and, where \`/dev/kvm\` opens, against that of this
machine (\`test/differential\`).

## Instructions

${lines(mnemonics.map((name) => name.toUpperCase()))}

An instruction that is not among them ends KVM_RUN with KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, and its bytes. So do
x87 and SSE arithmetic, MMX, AVX, XSAVE and its kin, BMI but for TZCNT and LZCNT, RDRAND and RDSEED, task switches and task gates,
virtual 8086 mode, SMM, nested SVM and VMX, and protection keys. CPUID offers none of them but the x87 and SSE2 that every 64-bit
processor has.

## What is not modelled

Alignment checks (#AC), data breakpoints, PCID. The four page-directory pointers of PAE are read at each walk. Real processors prefetch,
and keep stale entries of paging structures longer than this TLB does. Memory accesses of several vCPUs happen in one order, that of
one processor.

## What the manuals leave undefined

It is mostly as an AMD EPYC (Zen) does it:

| instruction | here |
| --- | --- |
| shifts, logical operations | AF is cleared |
| shifts and rotations by more than one | OF is that of the first step; ROL and ROR with an immediate leave it alone; for RCL and RCR it is that of the last step |
| SHLD, SHRD of 16 bits by more than 16 | the operands are repeated |
| MUL, IMUL | SF and PF are those of the lower half, ZF and AF are cleared |
| DIV, IDIV | flags stay |
| BT, BTS, BTR, BTC | all flags but CF stay |
| BSF, BSR | PF is that of the index, the others are cleared; for zero the destination stays |
| BSWAP of 16 bits | zero |
| DAA, DAS, AAM | OF is cleared |
| upper halves of registers outside 64-bit mode | cleared by what writes the lower half |

In which other things a kernel may differ that runs such guests by its own instruction emulator is listed, each with its reason, in
\`test/differential/guest-code/explained.ts\`.
`;
