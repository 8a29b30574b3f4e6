export const GHCB_MSR_INDEX = 0xc001_0130;
/** GHCB MSR protocol: AP reset hold. */
const AP_RESET_HOLD = 6;

/*
 * What the guest under observation does, as 32-bit code without an assembler: it derives a large number of random blocks from 16
 * secret bytes, and then tells the host again and again that it has.
 */

export const ENTRY = 0x1000;
const SCRATCH = 0x8000;
export const CANARY = 0x1_0000;
/** Blocks of 16 bytes that the guest derives. */
export const BLOCKS = 1024;
const WORDS = BLOCKS * 4;

export const u32 = (value: number): number[] => [...new Uint8Array(new Uint32Array([value]).buffer)];

/** One word of xorshift128 to [edi]. */
const NEXT_WORD = [
  ...[0x89, 0xd8, 0xc1, 0xe0, 11, 0x31, 0xd8], // mov eax, ebx; shl eax, 11; xor eax, ebx
  ...[0x89, 0xcb, 0x89, 0xd1, 0x89, 0xf2], // mov ebx, ecx; mov ecx, edx; mov edx, esi
  ...[0xa3, ...u32(SCRATCH), 0xc1, 0xe8, 8], // mov [SCRATCH], eax; shr eax, 8
  ...[0x33, 0x05, ...u32(SCRATCH)], // xor eax, [SCRATCH]
  ...[0x89, 0x35, ...u32(SCRATCH), 0xc1, 0xee, 19], // mov [SCRATCH], esi; shr esi, 19
  ...[0x33, 0x35, ...u32(SCRATCH), 0x31, 0xc6], // xor esi, [SCRATCH]; xor esi, eax
  ...[0x89, 0x37, 0x83, 0xc7, 4, 0x4d], // mov [edi], esi; add edi, 4; dec ebp
];

/** Derives the blocks from the 16 bytes at `secret`. Changes all registers but ESP. */
export const derive = (secret: number): number[] => [
  ...[0x8b, 0x1d, ...u32(secret)], // mov ebx, [secret]
  ...[0x8b, 0x0d, ...u32(secret + 4)], // mov ecx, [secret + 4]
  ...[0x8b, 0x15, ...u32(secret + 8)], // mov edx, [secret + 8]
  ...[0x8b, 0x35, ...u32(secret + 12)], // mov esi, [secret + 12]
  ...[0xbf, ...u32(CANARY), 0xbd, ...u32(WORDS)], // mov edi, CANARY; mov ebp, WORDS
  ...[...NEXT_WORD, 0x75, 0x100 - NEXT_WORD.length - 2], // jnz
];

/** Registers of a SEV guest are the host's to read: none keeps what it held. */
export const FORGET = [0x31, 0xc0, 0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, 0x31, 0xf6]; // eax, ebx, ecx, edx, esi = 0

/** Those of an SEV-ES guest are in its save area, and hold the secret when it leaves: XMM0 all of it, the others a word each. */
export const remember = (secret: number): number[] => [
  ...[0x0f, 0x10, 0x05, ...u32(secret)], // movups xmm0, [secret]
  ...[0x8b, 0x1d, ...u32(secret)], // mov ebx, [secret]
  ...[0x8b, 0x35, ...u32(secret + 4)], // mov esi, [secret + 4]
  ...[0x8b, 0x3d, ...u32(secret + 8)], // mov edi, [secret + 8]
  ...[0x8b, 0x2d, ...u32(secret + 12)], // mov ebp, [secret + 12]
];

const forever = (body: readonly number[]): number[] => [...body, 0xeb, 0x100 - body.length - 2]; // jmp

/** Writes the GHCB's MSR and leaves. Changes EAX, ECX and EDX. */
export const vmgexit = (value: number): number[] => [
  ...[0xb9, ...u32(GHCB_MSR_INDEX), 0xb8, ...u32(value), 0x31, 0xd2], // mov ecx, GHCB; mov eax, value; xor edx, edx
  ...[0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9], // wrmsr; vmgexit
];

/** A byte to a port, again and again: KVM_EXIT_IO. */
export const SAY_BY_PORT = forever([0xe6, 0x80]); // out 0x80, al

/** A wait for a SIPI that never comes, again and again: KVM_EXIT_AP_RESET_HOLD where userspace has the local APIC. */
export const SAY_BY_MSR = forever(vmgexit(AP_RESET_HOLD));

/** What the guest derives, in blocks of 16 bytes. */
export const derived = (secret: Uint8Array): Uint8Array[] => {
  let [x = 0, y = 0, z = 0, w = 0] = new Uint32Array(Uint8Array.from(secret.subarray(0, 16)).buffer);
  const words = new Uint32Array(WORDS);
  for (let index = 0; index < WORDS; index++) {
    const t = x ^ (x << 11);
    [x, y, z] = [y, z, w];
    w = (w ^ (w >>> 19) ^ t ^ (t >>> 8)) >>> 0;
    words[index] = w;
  }
  const bytes = new Uint8Array(words.buffer);
  return Array.from({ length: BLOCKS }, (_, index) => bytes.slice(index * 16, index * 16 + 16));
};

/** Sum of the derived words modulo 2^32: what the guest can say about them without giving one away. */
export const checksum = (blocks: readonly Uint8Array[]): number =>
  blocks.flatMap((block) => [...new Uint32Array(Uint8Array.from(block).buffer)]).reduce((sum, word) => (sum + word) >>> 0, 0);

/** EDX = the sum of the words. */
export const SUM_TO_EDX = [
  ...[0xbe, ...u32(CANARY), 0xb9, ...u32(WORDS), 0x31, 0xd2], // mov esi, CANARY; mov ecx, WORDS; xor edx, edx
  ...[0x03, 0x16, 0x83, 0xc6, 4, 0x49, 0x75, 0xf8], // add edx, [esi]; add esi, 4; dec ecx; jnz
];

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, l: 0, db: 1, g: 1, avl: 0, unusable: 0 };
const data = { ...FLAT, selector: 0x10, type: 3 };

/** Segments of flat 32-bit protected mode. */
export const FLAT_SEGMENTS = { cs: { ...FLAT, selector: 8, type: 11 }, ds: data, es: data, fs: data, gs: data, ss: data };
