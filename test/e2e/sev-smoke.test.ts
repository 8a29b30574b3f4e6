import { describe, expect, it } from 'vitest';
import { KvmSystemEventType, type VcpuExit } from '../../client/index.js';
import { finishLaunch, freeAll, type Kind, launched, SEV, SEV_ES, SHARED, SNP, setUpFor, shared } from './sev-machine.js';

/** The assertions of the kernel's selftest sev_smoke_test, over the wire. The guests are 64-bit code that reports in a shared page. */
const NODBG = 1;
const SNP_DEBUG = 1 << 19;
const PORT = 0x80;

const u32 = (value: number): number[] => [...new Uint8Array(new Uint32Array([value]).buffer)];
const movEcx = (value: number): number[] => [0xb9, ...u32(value)];
const RDMSR = [0x0f, 0x32];
const WRMSR = [0x0f, 0x30];
const SEV_STATUS = 0xc001_0131;
const EFER = 0xc000_0080;
const GHCB_MSR = 0xc001_0130;
const TERMINATE = 0x100;
const UD2 = [0x0f, 0x0b];

/** `mov [SHARED + 8 * slot], rax` */
const report = (slot: number): number[] => [0x48, 0x89, 0x04, 0x25, ...u32(SHARED + 8 * slot)];

/** Reads a control register, writes it back and reads it again: reports its value, and by how much it has changed. */
const sameControlRegister = (cr: number, slot: number): number[] => {
  const [rex, modrm] = cr < 8 ? [[], 0xc0 | (cr << 3)] : [[0x44], 0xc0];
  return [
    ...[...rex, 0x0f, 0x20, modrm, ...report(slot)], // mov rax, crN
    ...[...rex, 0x0f, 0x22, modrm], // mov crN, rax
    ...[...rex, 0x0f, 0x20, modrm | 3, 0x48, 0x29, 0xd8, ...report(slot + 1)], // mov rbx, crN; sub rax, rbx
  ];
};
const sameEfer = (slot: number): number[] => [
  ...[...movEcx(EFER), 0x31, 0xc0, ...RDMSR, ...report(slot), 0x89, 0xc6], // xor eax, eax; rdmsr; mov esi, eax
  ...[...WRMSR, ...RDMSR, 0x29, 0xf0, ...report(slot + 1)], // wrmsr; rdmsr; sub eax, esi
];

/** A SEV guest says that it is done by a port, others by the request to be terminated. */
const finish = ({ es }: Kind): number[] =>
  es
    ? [...movEcx(GHCB_MSR), 0xb8, ...u32(TERMINATE), 0x31, 0xd2, ...WRMSR, 0xf3, 0x0f, 0x01, 0xd9] // mov eax; xor edx, edx; wrmsr; vmgexit
    : [0xe7, PORT]; // out PORT, eax

const expectDone = ({ es }: Kind, exit: VcpuExit | undefined): void => {
  if (!es) {
    if (exit?.reason !== 'KVM_EXIT_IO') throw new Error(`${exit?.reason} instead of KVM_EXIT_IO`);
    expect(exit.io.port).toBe(PORT);
    return;
  }
  if (exit?.reason !== 'KVM_EXIT_SYSTEM_EVENT') throw new Error(`${exit?.reason} instead of KVM_EXIT_SYSTEM_EVENT`);
  const { type, ndata, data } = exit.system_event;
  expect([type, ndata, data[0]]).toEqual([KvmSystemEventType.KVM_SYSTEM_EVENT_SEV_TERM, 1, BigInt(TERMINATE)]);
};

const STATUS: Readonly<Record<Kind['name'], bigint>> = { SEV: 1n, 'SEV-ES': 3n, 'SEV-SNP': 7n };

describe.each([
  { ...SEV, policies: [0, NODBG] },
  { ...SEV_ES, policies: [0, NODBG] },
  { ...SNP, policies: [0, SNP_DEBUG] },
])('a $name guest', ({ policies, ...kind }) => {
  it.each(policies)('with policy %i sees what it is, and has its control registers to itself', async (policy) => {
    await using setup = await setUpFor(kind);
    const registers = [0, 3, 4, 8];
    const code = Uint8Array.from([
      ...[...movEcx(SEV_STATUS), ...RDMSR, ...report(0)],
      ...sameEfer(1),
      ...registers.flatMap((cr, index) => sameControlRegister(cr, 3 + 2 * index)),
      ...finish(kind),
    ]);
    const guest = await launched(setup, kind, code, policy);
    await finishLaunch(guest, setup);
    expectDone(kind, await guest.vcpus[0]?.run());
    const words = new BigUint64Array(Uint8Array.from(await shared(setup, guest, 0, 11 * 8)).buffer);
    const [status, efer, ...rest] = words;
    expect(status).toBe(STATUS[kind.name]);
    expect((efer ?? 0n) & 0x500n).toBe(0x500n);
    const [eferChange, cr0, cr0Change, cr3, cr3Change, cr4, cr4Change, , cr8Change] = rest;
    expect([cr0, cr3, cr4]).toEqual([0x8000_0011n, 0x3_0000n, 0x220n]);
    expect([eferChange, cr0Change, cr3Change, cr4Change, cr8Change]).toEqual([0n, 0n, 0n, 0n, 0n]);
    await freeAll(setup);
  });

  it('starts with the registers and the x87 and SSE state that its VMM has set', async () => {
    await using setup = await setUpFor(kind);
    const code = Uint8Array.from([
      ...[0x48, 0x0f, 0xae, 0x04, 0x25, ...u32(SHARED)], // fxsave64 [SHARED]
      ...[0x48, 0x89, 0x1c, 0x25, ...u32(SHARED + 512)], // mov [SHARED + 512], rbx
      ...[0x4c, 0x89, 0x3c, 0x25, ...u32(SHARED + 520)], // mov [SHARED + 520], r15
      ...finish(kind),
    ]);
    const area = new Uint8Array(4096);
    const image = Uint8Array.from({ length: 512 }, (_, index) => (index >= 32 && index < 416 ? index * 7 : 0));
    // Ten bytes of each x87 register; the six after them are reserved.
    for (let at = 32; at < 160; at += 16) image.fill(0, at + 10, at + 16);
    const view = new DataView(image.buffer);
    view.setUint16(0, 0x27f, true);
    view.setUint8(4, 0xff);
    view.setUint32(24, 0x1f80 | 0x6000, true);
    view.setUint32(28, 0xffff, true);
    area.set(image);
    area[512] = 3;
    const guest = await launched(setup, kind, code, 0, async (vcpu) => {
      await vcpu.setXsave({ region: area });
      await vcpu.setRegs({ ...(await vcpu.getRegs()), rbx: 0x1122_3344_5566_7788n, r15: 0x99aa_bbcc_ddee_ff00n });
    });
    await finishLaunch(guest, setup);
    expectDone(kind, await guest.vcpus[0]?.run());
    expect(Buffer.from(await shared(setup, guest, 0, 512)).toString('hex')).toBe(Buffer.from(image).toString('hex'));
    const words = new BigUint64Array(Uint8Array.from(await shared(setup, guest, 512, 16)).buffer);
    expect([...words]).toEqual([0x1122_3344_5566_7788n, 0x99aa_bbcc_ddee_ff00n]);
    await freeAll(setup);
  });

  it('shuts down at an exception that nobody handles', async () => {
    await using setup = await setUpFor(kind);
    const guest = await launched(setup, kind, Uint8Array.from(UD2));
    await finishLaunch(guest, setup);
    expect((await guest.vcpus[0]?.run())?.reason).toBe('KVM_EXIT_SHUTDOWN');
    await freeAll(setup);
  });
});
