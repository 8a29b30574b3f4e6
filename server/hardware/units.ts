/**
 * Branded numbers for the quantities that are easiest to mix up. All are plain numbers of at most 52 bits at run
 * time; a constructor here is the only place where a number becomes one of them.
 */
declare const brand: unique symbol;
type Branded<Name extends string> = number & { readonly [brand]: Name };

/** Guest physical address, bytes. */
export type Gpa = Branded<'gpa'>;
/** Guest frame number: a GPA divided by 4096. */
export type Gfn = Branded<'gfn'>;
/** Host (system) physical address, bytes. */
export type Hpa = Branded<'hpa'>;
/** Page frame number of host memory: an HPA divided by 4096. */
export type Pfn = Branded<'pfn'>;
/** User virtual address in one process's address space, bytes, below 2^47. */
export type Uva = Branded<'uva'>;
/** Address space identifier of AMD SEV: 0 is the host. */
export type Asid = Branded<'asid'>;

export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;

export const gpa = (value: number): Gpa => value as Gpa;
export const gfn = (value: number): Gfn => value as Gfn;
export const hpa = (value: number): Hpa => value as Hpa;
export const pfn = (value: number): Pfn => value as Pfn;
export const uva = (value: number): Uva => value as Uva;
export const asid = (value: number): Asid => value as Asid;

export const gpaToGfn = (address: Gpa): Gfn => gfn(Math.floor(address / PAGE_SIZE));
export const gfnToGpa = (frame: Gfn): Gpa => gpa(frame * PAGE_SIZE);
export const pfnToHpa = (frame: Pfn): Hpa => hpa(frame * PAGE_SIZE);
export const hpaToPfn = (address: Hpa): Pfn => pfn(Math.floor(address / PAGE_SIZE));

/**
 * The byte of its page that an address means: the kernel's `offset_in_page`. The remainder of a division would be the same, but
 * one of floating point, for addresses have more than 31 bits.
 */
export const offsetInPage = (address: number): number => address & (PAGE_SIZE - 1);
