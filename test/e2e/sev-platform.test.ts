import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Errno, type Outcome, type SevPlatform, SevRetCode, startWorld, type World } from '../../client/index.js';

const CERTIFICATE = 2084;
const RDONLY = 0;

describe('/dev/sev over the wire', () => {
  let world: World;
  beforeAll(async () => {
    world = await startWorld();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  it('reports the platform, the chip and its certificates', async () => {
    await using sev = await world.process.openSev();
    expect(await sev.platformStatus()).toMatchObject({ state: 0, guest_count: 0 });
    const { address_bytes: id, length } = await sev.getId2();
    expect([id.length, length]).toEqual([64, 64]);
    const { pdh_cert_address_bytes: pdh, cert_chain_address_bytes: chain } = await sev.pdhCertExport();
    expect([pdh.length, chain.length]).toEqual([CERTIFICATE, 3 * CERTIFICATE]);
    const csr = await sev.pekCsr();
    expect(csr.address_bytes.subarray(8, 0x414)).toEqual(chain.subarray(8, 0x414));
    const cek = await world.simkvm.keyDistribution.getCek();
    expect(cek.subarray(0, 0x414)).toEqual(chain.subarray(2 * CERTIFICATE, 2 * CERTIFICATE + 0x414));
  });

  it('says how long an answer would be, with the firmware’s status', async () => {
    await using sev = await world.process.openSev();
    const csr = await sev.try.pekCsr({ length: 0 });
    expect(csr).toMatchObject({ errno: 'EIO', value: { length: CERTIFICATE } });
    if (csr.errno !== null) expect(csr.error.fwError).toBe(SevRetCode.SEV_RET_INVALID_LEN);
    expect(await sev.try.pdhCertExport({ pdh_cert_len: 1, cert_chain_len: 1 })).toMatchObject({
      errno: 'EIO',
      value: { pdh_cert_len: CERTIFICATE, cert_chain_len: 3 * CERTIFICATE },
    });
    expect(await sev.try.getId2({ length: 0 })).toMatchObject({ errno: 'EIO', value: { length: 64 } });
  });

  it('makes new keys, and forgets them at a reset', async () => {
    await using sev = await world.process.openSev();
    const keyOf = async () => (await sev.pdhCertExport()).pdh_cert_address_bytes.slice(16, 16 + 148);
    const keys = [await keyOf()];
    for (const change of [() => sev.pdhGen(), () => sev.pekGen(), () => sev.factoryReset()]) {
      await change();
      keys.push(await keyOf());
    }
    expect(new Set(keys.map((key) => Buffer.from(key).toString('hex'))).size).toBe(4);
    expect(await keyOf()).toEqual(keys.at(-1));
  });

  it('refuses a certificate that is none', async () => {
    await using sev = await world.process.openSev();
    const blob = new Uint8Array(CERTIFICATE);
    const imported = await sev.try.pekCertImport({ pek_cert_address_bytes: blob, oca_cert_address_bytes: blob });
    expect(imported.errno === null ? null : imported.error.fwError).toBe(SevRetCode.SEV_RET_INVALID_CERTIFICATE);
    expect((await sev.try.pekCertImport({})).errno).toBe('EINVAL');
  });

  it('lets a descriptor that is open for reading look, and change nothing', async () => {
    const errnoOf = ({ errno }: Outcome<unknown>): Errno | null => errno;
    await using sev = await world.process.openSev(RDONLY);
    expect(errnoOf(await sev.try.platformStatus())).toBeNull();
    for (const change of [sev.try.factoryReset(), sev.try.pekGen(), sev.try.pdhGen(), sev.try.pekCsr(), sev.try.pdhCertExport()])
      expect(errnoOf(await change)).toBe('EPERM');
    expect(errnoOf(await sev.try.snpSetConfig({}))).toBe('EPERM');
    expect(errnoOf(await sev.try.snpVlekLoad({}))).toBe('EPERM');
  });

  it('EBUSY for a reset while a guest is there', async () => {
    await using sev = await world.process.openSev();
    await using kvm = await world.process.openKvm();
    await using vm = await kvm.createVm();
    await vm.sev.init();
    await vm.sev.launchStart({ policy: 0 }, sev.fd);
    expect(await sev.platformStatus()).toMatchObject({ state: 2, guest_count: 1 });
    expect((await sev.try.factoryReset()).errno).toBe('EBUSY');
  });
});

describe('--init-ex-path', () => {
  it('keeps the platform’s identity, its owner among it, over restarts of the daemon', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'simkvm-init-ex-'));
    const args = ['--init-ex-path', join(folder, 'nv')];
    const certificates = async (change: (sev: SevPlatform) => Promise<unknown> = async () => {}) => {
      await using world = await startWorld({ args });
      await using sev = await world.process.openSev();
      await change(sev);
      const { pdh_cert_address_bytes: pdh, cert_chain_address_bytes: chain } = await sev.pdhCertExport();
      return Buffer.concat([pdh, chain]).toString('hex');
    };
    try {
      const first = await certificates();
      const second = await certificates((sev) => sev.pekGen());
      expect(second).not.toBe(first);
      expect(await certificates()).toBe(second);
      writeFileSync(join(folder, 'nv'), 'not an image of any identity');
      expect(await certificates()).not.toBe(second);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
