import { describe, expect, it } from 'vitest';
import { ENTRY, finishLaunch, freeAll, launched, MEMORY_BYTES, SEV, SEV_ES, setUp } from './sev-machine.js';

/** The assertions of the kernel's selftest sev_dbg_test, over the wire. */
const BUFFER = 0x8000;
const PAGE = 4096;
const OFFSETS = [0, 1, 8, 15, 16, 23, PAGE - 16, PAGE - 1, PAGE];
const SIZES = [1, 8, 15, 16, 17, 32, 33, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1];

describe.each([SEV, SEV_ES])('debugging a $name guest', (kind) => {
  it('reads and writes its memory, at any offset and of any size', async () => {
    await using setup = await setUp();
    const { memory } = setup.world.process;
    const code = new Uint8Array(BUFFER - 0x1000 + 2 * PAGE);
    code.fill(0xaa, BUFFER - 0x1000);
    const guest = await launched(setup, kind, code);
    await finishLaunch(guest, setup);
    const plain = await memory.mmap({ length: MEMORY_BYTES });
    const buffer = guest.uaddr + BigInt(BUFFER);
    expect((await memory.read(buffer, 2 * PAGE)).filter((byte) => byte === 0xaa).length).toBeLessThan(PAGE);
    await guest.vm.sev.dbgDecrypt({ src_uaddr: buffer, dst_uaddr: plain, len: 2 * PAGE });
    expect(await memory.read(plain, 2 * PAGE)).toEqual(new Uint8Array(2 * PAGE).fill(0xaa));
    let seed = 0;
    for (const offset of OFFSETS)
      for (const size of SIZES.filter((length) => offset + length <= 2 * PAGE)) {
        const pattern = Uint8Array.from({ length: size }, (_, index) => index * 7 + seed++);
        const at = buffer + BigInt(offset);
        await memory.write(plain, pattern);
        await guest.vm.sev.dbgEncrypt({ src_uaddr: plain, dst_uaddr: at, len: size });
        await memory.write(plain, new Uint8Array(size));
        await guest.vm.sev.dbgDecrypt({ src_uaddr: at, dst_uaddr: plain, len: size });
        expect(await memory.read(plain, size), `${size} bytes at ${offset}`).toEqual(pattern);
      }
    await freeAll(setup);
  });

  it('is for its mirror as well', async () => {
    await using setup = await setUp();
    const { memory } = setup.world.process;
    const guest = await launched(setup, kind, new Uint8Array(PAGE).fill(0x5a));
    await finishLaunch(guest, setup);
    const mirror = await setup.kvm.createVm(kind.type);
    await mirror.copyEncContextFrom(guest.vm);
    const plain = await memory.mmap({ length: PAGE });
    const code = guest.uaddr + BigInt(ENTRY);
    await mirror.sev.dbgDecrypt({ src_uaddr: code, dst_uaddr: plain, len: PAGE });
    expect(await memory.read(plain, PAGE)).toEqual(new Uint8Array(PAGE).fill(0x5a));
    await memory.write(plain, new Uint8Array(PAGE).fill(0xa5));
    await mirror.sev.dbgEncrypt({ src_uaddr: plain, dst_uaddr: code, len: PAGE });
    await memory.write(plain, new Uint8Array(PAGE));
    await guest.vm.sev.dbgDecrypt({ src_uaddr: code, dst_uaddr: plain, len: PAGE });
    expect(await memory.read(plain, PAGE)).toEqual(new Uint8Array(PAGE).fill(0xa5));
    await freeAll(setup);
  });

  it('is refused where its policy forbids it', async () => {
    await using setup = await setUp();
    const guest = await launched(setup, kind, Uint8Array.of(0xf4), 1);
    await finishLaunch(guest, setup);
    const dbg = { src_uaddr: guest.uaddr, dst_uaddr: await setup.world.process.memory.mmap({ length: PAGE }), len: 16 };
    for (const outcome of [await guest.vm.sev.try.dbgDecrypt(dbg), await guest.vm.sev.try.dbgEncrypt(dbg)])
      expect(outcome.errno === null ? null : [outcome.errno, outcome.error.fwError]).toEqual(['EIO', 7]);
    await freeAll(setup);
  });
});
