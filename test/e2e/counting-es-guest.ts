import { KvmCap } from '../../client/index.js';
import type { CountingGuest, Host } from './migrating-guest.js';
import { finishLaunch, launched, SEV_ES, SHARED } from './sev-machine.js';

/** Fields of the GHCB, by their offsets (GHCB specification, table 3), and codes of exits. */
const GHCB = { cpl: 0xcb, rax: 0x1f8, rcx: 0x308, rdx: 0x310, rbx: 0x318, code: 0x390, info1: 0x398, info2: 0x3a0 } as const;
const VALID_BITMAP = 0x3f0;
const BITMAP_WORDS = 4;
const PROTOCOL_VERSION = 0xffa;
const IOIO = 0x7b;
const VMMCALL = 0x81;
/** KVM_HC_MAP_GPA_RANGE; the page is to be shared. */
const MAP_GPA_RANGE = 12;
const GHCB_MSR = 0xc001_0130;

const SERIAL = 0xe9;
const COUNTER = 0x2000;

type Request = Partial<Record<keyof typeof GHCB, number>>;

const u32 = (value: number): number[] => [...new Uint8Array(new Uint32Array([value]).buffer)];
/** `mov dword [at], value` in 64-bit mode. */
const store = (at: number, value: number): number[] => [0xc7, 0x04, 0x25, ...u32(at), ...u32(value)];

/** Writes a request into the GHCB, and declares its fields as valid: one bit for each quadword. */
const write = (request: Request): number[] => {
  const words = new Uint32Array(BITMAP_WORDS);
  const code: number[] = [];
  for (const [name, offset] of Object.entries(GHCB)) {
    const value = Object.entries(request).find(([each]) => each === name)?.[1];
    if (value === undefined) continue;
    code.push(...store(SHARED + offset, value));
    const word = offset >> 8;
    words[word] = (words[word] ?? 0) | (1 << ((offset >> 3) & 31));
  }
  for (const [word, bits] of words.entries()) code.push(...store(SHARED + VALID_BITMAP + 4 * word, bits));
  return [...code, 0x66, 0xc7, 0x04, 0x25, ...u32(SHARED + PROTOCOL_VERSION), 1, 0];
};

/** `mov ecx, GHCB MSR; mov eax, SHARED; xor edx, edx; wrmsr; vmgexit` */
const EXIT = [0xb9, ...u32(GHCB_MSR), 0xb8, ...u32(SHARED), 0x31, 0xd2, 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9];

/** Declares the page of its GHCB as shared, then counts for ever, in a private page and on its serial port. */
const program = (): Uint8Array => {
  const share = { cpl: 0, rax: MAP_GPA_RANGE, rbx: SHARED, rcx: 1, rdx: 0, code: VMMCALL, info1: 0, info2: 0 };
  const begin = [...write(share), ...EXIT];
  const count = [
    ...write({ rax: 0, code: IOIO, info1: (SERIAL << 16) | 0x10, info2: 0 }),
    ...[0xff, 0x04, 0x25, ...u32(COUNTER)], // inc dword [COUNTER]
    ...[0x0f, 0xb6, 0x04, 0x25, ...u32(COUNTER)], // movzx eax, byte [COUNTER]
    ...[0x89, 0x04, 0x25, ...u32(SHARED + GHCB.rax)], // mov [GHCB.rax], eax
    ...EXIT,
  ];
  return Uint8Array.from([...begin, ...count, 0xe9, ...u32(-(count.length + 5))]);
};

/** A guest with encrypted registers that counts, in 64-bit mode, and writes to its port through a GHCB. */
export const sevEsGuest = async (host: Host): Promise<CountingGuest> => {
  await using kvm = await host.process.openKvm();
  await using sev = await host.process.openSev();
  const kept = { [Symbol.asyncDispose]: async () => {} };
  const setup = { world: { ...host, ...kept }, kvm, sev, ...kept };
  const guest = await launched(setup, SEV_ES, program());
  const { vm, vcpus } = guest;
  await vm.enableCap({ cap: KvmCap.KVM_CAP_EXIT_HYPERCALL, args: [BigInt(1 << MAP_GPA_RANGE)] });
  await finishLaunch(guest, setup);
  const [vcpu] = vcpus;
  if (vcpu === undefined) throw new Error('no vCPU');
  const exit = await vcpu.run();
  if (exit.reason !== 'KVM_EXIT_HYPERCALL') throw new Error(`${exit.reason} instead of the request to share the GHCB's page`);
  return { vm, vcpu };
};
