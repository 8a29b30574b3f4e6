import { describe, expect, it } from 'vitest';
import { KvmSystemEventType } from '../../client/index.js';
import { finishLaunch, freeAll, launched, RESULT, SEV, SEV_ES, type Setup, setUp } from './sev-machine.js';

/** The assertions of the kernel's selftest sev_smoke_test, over the wire. The guests are 32-bit code without page tables. */
const NODBG = 1;
const POLICIES = [0, NODBG];
const PORT = 0x80;

const movEcx = (value: number): number[] => [0xb9, ...new Uint8Array(new Uint32Array([value]).buffer)];
const movEax = (value: number): number[] => [0xb8, ...new Uint8Array(new Uint32Array([value]).buffer)];
const RDMSR = [0x0f, 0x32];
const WRMSR = [0x0f, 0x30];
const OUT_EAX = [0xe7, PORT];
const SEV_STATUS = 0xc001_0131;
const EFER = 0xc000_0080;
const GHCB_MSR = 0xc001_0130;
const TERMINATE = 0x100;
const UD2 = [0x0f, 0x0b];
const VMGEXIT = [0xf3, 0x0f, 0x01, 0xd9];

/** Reads a control register, writes it back, reads it again; EAX is 0 where nothing has changed. */
const sameControlRegister = (cr: number): number[] => [
  ...[0x0f, 0x20, 0xc0 | (cr << 3)], // mov eax, crN
  ...[0x0f, 0x22, 0xc0 | (cr << 3)], // mov crN, eax
  ...[0x0f, 0x20, 0xc3 | (cr << 3)], // mov ebx, crN
  ...[0x29, 0xd8], // sub eax, ebx
];
const SAME_EFER = [...movEcx(EFER), ...RDMSR, 0x89, 0xc6, ...WRMSR, ...RDMSR, 0x29, 0xf0]; // mov esi, eax ... sub eax, esi
const STORE_RESULT = [0xa3, ...new Uint8Array(new Uint32Array([RESULT]).buffer)]; // mov [RESULT], eax
const TERMINATE_GUEST = [...movEcx(GHCB_MSR), ...movEax(TERMINATE), 0x31, 0xd2, ...WRMSR, ...VMGEXIT];

const word = (bytes: Uint8Array): number => Buffer.from(bytes).readUInt32LE();

const ended = async (setup: Setup, body: (setup: Setup) => Promise<void>): Promise<void> => {
  await body(setup);
  await freeAll(setup);
};

describe.each(POLICIES)('with policy %i', (policy) => {
  it('a SEV guest sees that it is one, has its registers to itself, and shuts down at an exception that nobody handles', async () => {
    await using setup = await setUp();
    const code = Uint8Array.from([
      ...[...movEcx(SEV_STATUS), ...RDMSR, ...OUT_EAX],
      ...[...SAME_EFER, ...OUT_EAX],
      ...[0, 3, 4].flatMap((cr) => [...sameControlRegister(cr), ...OUT_EAX]),
      ...UD2,
    ]);
    await ended(setup, async () => {
      const guest = await launched(setup, SEV, code, policy);
      await finishLaunch(guest);
      const [vcpu] = guest.vcpus;
      const reports: number[] = [];
      for (;;) {
        const exit = await vcpu?.run();
        if (exit?.reason !== 'KVM_EXIT_IO') {
          expect(exit?.reason).toBe('KVM_EXIT_SHUTDOWN');
          break;
        }
        expect(exit.io.port).toBe(PORT);
        reports.push(word(exit.io.data));
      }
      const [status, ...changes] = reports;
      expect(status).toBe(1);
      expect(changes).toEqual([0, 0, 0, 0]);
    });
  });

  it('a SEV-ES guest terminates by the GHCB’s MSR', async () => {
    await using setup = await setUp();
    await ended(setup, async ({ world }) => {
      const code = Uint8Array.from([...movEcx(SEV_STATUS), ...RDMSR, ...STORE_RESULT, ...TERMINATE_GUEST]);
      const guest = await launched(setup, SEV_ES, code, policy);
      await finishLaunch(guest);
      const exit = await guest.vcpus[0]?.run();
      if (exit?.reason !== 'KVM_EXIT_SYSTEM_EVENT') throw new Error(`${exit?.reason} instead of KVM_EXIT_SYSTEM_EVENT`);
      const { type, ndata, data } = exit.system_event;
      expect([type, ndata, data[0]]).toEqual([KvmSystemEventType.KVM_SYSTEM_EVENT_SEV_TERM, 1, BigInt(TERMINATE)]);
      if (policy === NODBG) return;
      const { memory } = world.process;
      const plain = await memory.mmap({ length: 4096 });
      await guest.vm.sev.dbgDecrypt({ src_uaddr: guest.uaddr + BigInt(RESULT), dst_uaddr: plain, len: 4 });
      expect(word(await memory.read(plain, 4)) & 3).toBe(3);
    });
  });

  it('a SEV-ES guest shuts down at an exception that nobody handles', async () => {
    await using setup = await setUp();
    await ended(setup, async () => {
      const guest = await launched(setup, SEV_ES, Uint8Array.from(UD2), policy);
      await finishLaunch(guest);
      expect((await guest.vcpus[0]?.run())?.reason).toBe('KVM_EXIT_SHUTDOWN');
    });
  });
});
