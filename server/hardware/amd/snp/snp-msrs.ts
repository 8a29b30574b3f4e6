/** The model-specific registers of one CPU that SNP_INIT looks at (sev-firmware.md 1.4, 4.1). */
export interface SnpCpuRegisters {
  /** SYSCFG bits 24 and 25: SEV-SNP and its VMPLs are enabled. */
  readonly enabled: boolean;
  /** RMP_BASE and RMP_END. */
  readonly rmpBase: number;
  readonly rmpEnd: number;
  /** VM_HSAVE_PA: zero while no SVM guest can run on the CPU. */
  readonly hsavePa: number;
}

const AT_RESET: SnpCpuRegisters = { enabled: false, rmpBase: 0, rmpEnd: 0, hsavePa: 0 };

/** The registers of all CPUs, which the kernel sets before it asks for SNP_INIT. */
export class SnpMsrs {
  private readonly cpus: SnpCpuRegisters[];

  constructor(cpus: number) {
    this.cpus = new Array<SnpCpuRegisters>(cpus).fill(AT_RESET);
  }

  read(cpu: number): SnpCpuRegisters {
    return this.cpus[cpu] ?? AT_RESET;
  }

  write(cpu: number, registers: Partial<SnpCpuRegisters>): void {
    this.cpus[cpu] = { ...this.read(cpu), ...registers };
  }

  /** Whether SNP can be initialised: enabled on every CPU, with one and the same table, and no CPU set up to run guests. */
  isConsistent(): boolean {
    const [first] = this.cpus;
    if (first === undefined || first.rmpEnd <= first.rmpBase) return false;
    return this.cpus.every(
      ({ enabled, rmpBase, rmpEnd, hsavePa }) => enabled && hsavePa === 0 && rmpBase === first.rmpBase && rmpEnd === first.rmpEnd,
    );
  }
}
