import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { encodeEcPublicKey, encodeEcSignature } from '../../../../../server/hardware/amd/certificates.js';
import { keyPairFromSeed, sign } from '../../../../../server/hardware/amd/p384.js';
import { REPORT } from '../../../../../server/hardware/amd/snp/attestation-report.js';
import { CPUID_ENTRY, CPUID_PAGE } from '../../../../../server/hardware/amd/snp/cpuid-page.js';
import { checkIdBlock, ID_AUTH, ID_BLOCK } from '../../../../../server/hardware/amd/snp/id-block.js';
import { extendSnpDigest, PAGE_TYPE } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { STATUS } from '../../../../../server/hardware/amd/status.js';
import { VMSA, type VmsaSegment } from '../../../../../server/hardware/amd/vmsa.js';
import { createEntropy } from '../../../../../server/hardware/entropy.js';
import { asid, gpa, PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { hex, jsonVector, unhex, VECTORS_NEEDED, vector, vectorsAbsent } from '../rig.js';
import { initialised, POLICY } from './snp-rig.js';

/** The save area of a vCPU at reset as QEMU gives it to KVM, for the published digests. */
function vmsa(eip: number, features: bigint): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  const segment = (attributes: number, selector = 0, base = 0n): VmsaSegment => ({ selector, attributes, limit: 0xffff, base });
  for (const field of [VMSA.es, VMSA.ss, VMSA.ds, VMSA.fs, VMSA.gs]) field.set(page, segment(0x93));
  VMSA.cs.set(page, segment(0x9b, 0xf000, BigInt(eip >>> 16) << 16n));
  VMSA.gdtr.set(page, segment(0));
  VMSA.idtr.set(page, segment(0));
  VMSA.ldtr.set(page, segment(0x82));
  VMSA.tr.set(page, segment(0x8b));
  const values = [
    [VMSA.efer, 0x1000n],
    [VMSA.cr4, 0x40n],
    [VMSA.cr0, 0x10n],
    [VMSA.dr7, 0x400n],
    [VMSA.dr6, 0xffff0ff0n],
    [VMSA.rflags, 2n],
    [VMSA.rip, BigInt(eip & 0xffff)],
    [VMSA.gPat, 0x0007040600070406n],
    [VMSA.rdx, 0x800f12n],
    [VMSA.sevFeatures, features],
    [VMSA.xcr0, 1n],
  ] as const;
  for (const [field, value] of values) field.set(page, value);
  VMSA.mxcsr.set(page, 0x1f80);
  VMSA.x87Fcw.set(page, 0x37f);
  return page;
}

const guid = (text: string): Buffer => {
  const [a = '', b = '', c = '', d = '', e = ''] = text.split('-');
  const reversed = (part: string): Buffer => Buffer.from(part, 'hex').reverse();
  return Buffer.concat([reversed(a), reversed(b), reversed(c), Buffer.from(d + e, 'hex')]);
};

/** The page with the table of kernel hashes that QEMU makes for an empty kernel, an empty initrd and a command line. */
function kernelHashes(cmdline: string): Uint8Array {
  const entry = (id: string, data: Uint8Array): Buffer =>
    Buffer.concat([guid(id), Uint8Array.of(50, 0), createHash('sha256').update(data).digest()]);
  const table = Buffer.concat([
    guid('9438d606-4f22-4cc9-b479-a793d411fd21'),
    Uint8Array.of(168, 0),
    entry('97d02dd8-bd20-4c94-aa78-e7714d36ab2a', Buffer.from(`${cmdline}\0`)),
    entry('44baf731-3a2f-4bd7-9af1-41e29169781d', new Uint8Array(0)),
    entry('4de79437-abd2-427f-b835-d5b172d2045b', new Uint8Array(0)),
  ]);
  const page = new Uint8Array(PAGE_SIZE);
  page.set(table, 0xc00);
  return page;
}

describe('the launch digest', () => {
  const image = vectorsAbsent ? new Uint8Array(PAGE_SIZE) : vector('measure/ovmf_AmdSev_suffix.bin');

  /** Launches the AmdSev image with its metadata through the secure processor, and reads the measurement from a report. */
  function measure(vcpus: number, features: bigint, hashes: Uint8Array | null): string {
    const rig = initialised();
    const guest = rig.launchContext();
    const launch = (type: 1 | 2 | 3 | 5 | 6, address: number, bytes?: Uint8Array) =>
      rig.launchPage(guest.context, 1, type, address, bytes ?? new Uint8Array(PAGE_SIZE));
    const zero = (address: number, length: number): void => {
      for (let at = 0; at < length; at += PAGE_SIZE) launch(PAGE_TYPE.ZERO, address + at);
    };
    launch(PAGE_TYPE.NORMAL, 2 ** 32 - PAGE_SIZE, image);
    zero(0x800000, 0x9000);
    zero(0x80a000, 0x3000);
    const secrets = launch(PAGE_TYPE.SECRETS, 0x80d000);
    launch(PAGE_TYPE.CPUID, 0x80e000);
    zero(0x80f000, 0x1000);
    if (hashes === null) zero(0x810000, 0x1000);
    else launch(PAGE_TYPE.NORMAL, 0x810000, hashes);
    zero(0x811000, 0xf000);
    for (let vcpu = 0; vcpu < vcpus; vcpu++)
      launch(PAGE_TYPE.VMSA, 0xfffffffff000, vmsa(vcpu === 0 ? 0xfffffff0 : 0x80b004, features));
    expect(rig.launchFinish(guest.context)).toBe(STATUS.SUCCESS);
    const vmpck0 = rig.seenBy(1, secrets, PAGE_SIZE).slice(0x20, 0x40);
    return hex(REPORT.measurement.get(rig.report({ context: guest.context, vmpcks: [vmpck0] }).report));
  }

  it.skipIf(vectorsAbsent)(`is what sev-snp-measure publishes, through RMP, launch and report (${VECTORS_NEEDED})`, () => {
    expect(measure(1, 0x1n, null)).toBe(
      '19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d',
    );
    expect(measure(1, 0x21n, null)).toBe(
      'e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b',
    );
    expect(measure(4, 0x1n, kernelHashes(''))).toBe(
      '5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5',
    );
    expect(measure(1, 0x21n, kernelHashes('console=ttyS0 loglevel=7'))).toBe(
      '803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977',
    );
  });

  it.skipIf(vectorsAbsent)(`is that of the model's chain of page types and permissions (${VECTORS_NEEDED})`, () => {
    const vectors = jsonVector('selfcomputed-launch.json');
    const rows: unknown = typeof vectors === 'object' && vectors !== null && 'snp' in vectors ? vectors.snp : null;
    if (!Array.isArray(rows)) throw new Error('no SNP rows');
    const plaintext = Uint8Array.from({ length: PAGE_SIZE }, (_, index) => index & 0xff);
    let digest: Uint8Array = new Uint8Array(48);
    for (const { type, gpa: address, vmpl, ld } of rows) {
      digest = extendSnpDigest(digest, { type, gpa: Number(address), permissions: vmpl, plaintext });
      expect([type, hex(digest)]).toEqual([type, ld]);
    }
  });
});

describe('SNP_LAUNCH_START', () => {
  const start = (policy: bigint) => {
    const rig = initialised();
    return rig.launchStart(rig.createContext(), policy);
  };

  it('refuses policies that the platform cannot honour', () => {
    expect(start(POLICY)).toBe(STATUS.SUCCESS);
    expect(start(POLICY | 0x0137n)).toBe(STATUS.SUCCESS);
    expect(start(POLICY | 0x0138n)).toBe(STATUS.POLICY_FAILURE);
    expect(start(POLICY | 0x0200n)).toBe(STATUS.POLICY_FAILURE);
    expect(start(0x10000n)).toBe(STATUS.POLICY_FAILURE);
    expect(start(0x20000n)).toBe(STATUS.POLICY_FAILURE);
    for (const bit of [22n, 23n, 24n]) expect(start(POLICY | (1n << bit))).toBe(STATUS.POLICY_FAILURE);
    for (const bit of [26n, 63n]) expect(start(POLICY | (1n << bit))).toBe(STATUS.INVALID_PARAM);
    for (const bit of [19n, 20n, 21n, 25n]) expect(start(POLICY | (1n << bit))).toBe(STATUS.SUCCESS);
  });
});

describe('SNP_LAUNCH_UPDATE', () => {
  it('takes pages that wait for this guest, of the right size and a known type', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const other = rig.frame();
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, other.hpa)).toBe(STATUS.INVALID_PAGE_STATE);
    rig.rmpupdate(other, { immutable: true, asid: asid(2), gpa: gpa(0x1000) });
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, other.hpa)).toBe(STATUS.INVALID_PAGE_OWNER);
    const own = rig.frame();
    rig.rmpupdate(own, { immutable: true, asid: asid(1), gpa: gpa(0x1000) });
    expect(rig.launchUpdate(context, 0, own.hpa)).toBe(STATUS.INVALID_PARAM);
    expect(rig.launchUpdate(context, 7, own.hpa)).toBe(STATUS.INVALID_PARAM);
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, own.hpa + 16)).toBe(STATUS.INVALID_ADDRESS);
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, own.hpa)).toBe(STATUS.SUCCESS);
    expect(rig.stateOf(own.hpa)).toBe('guest-valid');
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, own.hpa)).toBe(STATUS.INVALID_PAGE_STATE);
  });

  it('wants an active guest', () => {
    const rig = initialised();
    const context = rig.createContext();
    rig.launchStart(context);
    const frame = rig.frame();
    rig.rmpupdate(frame, { immutable: true, asid: asid(1), gpa: gpa(0x1000) });
    expect(rig.launchUpdate(context, PAGE_TYPE.NORMAL, frame.hpa)).toBe(STATUS.INACTIVE);
  });

  it('encrypts what it measures, and marks save areas', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const plaintext = new Uint8Array(PAGE_SIZE).fill(0x33);
    const page = rig.launchPage(context, 1, PAGE_TYPE.NORMAL, 0x1000, plaintext);
    expect(hex(rig.cells(page, PAGE_SIZE))).not.toContain('33'.repeat(16));
    expect(hex(rig.seenBy(1, page, PAGE_SIZE))).toBe(hex(plaintext));
    const area = rig.launchPage(context, 1, PAGE_TYPE.VMSA, 0xfffffffff000, plaintext);
    expect(rig.rmp.checkVmsa(rig.dramPage(area), asid(1))).toBe(null);
    expect(rig.rmp.checkVmsa(rig.dramPage(page), asid(1))).toBe('vmsa');
    const zero = rig.launchPage(context, 1, PAGE_TYPE.ZERO, 0x2000, plaintext);
    expect(rig.seenBy(1, zero, PAGE_SIZE).every((byte) => byte === 0)).toBe(true);
  });

  it('gives a CPUID page with values that the platform lacks back in the clear, corrected, and takes it then', () => {
    const rig = initialised();
    const { context } = rig.launchContext();
    const page = new Uint8Array(PAGE_SIZE);
    CPUID_PAGE.count.set(page, 1);
    const entry = page.subarray(16, 64);
    CPUID_ENTRY.eaxIn.set(entry, 0x8000001f);
    CPUID_ENTRY.eax.set(entry, 0xffffffff);
    CPUID_ENTRY.ebx.set(entry, 47);
    const frame = rig.frame();
    frame.viewForWrite(null).set(page);
    rig.rmpupdate(frame, { immutable: true, asid: asid(1), gpa: gpa(0x80e000) });
    expect(rig.launchUpdate(context, PAGE_TYPE.CPUID, frame.hpa)).toBe(STATUS.INVALID_PARAM);
    const corrected = rig.cells(frame.hpa + 16, 48);
    expect(CPUID_ENTRY.ebx.get(corrected) & 0x3f).toBe(51);
    expect(CPUID_ENTRY.eax.get(corrected)).not.toBe(0xffffffff);
    expect(rig.stateOf(frame.hpa)).toBe('pre-guest');
    expect(rig.launchUpdate(context, PAGE_TYPE.CPUID, frame.hpa)).toBe(STATUS.SUCCESS);
  });
});

describe('SNP_LAUNCH_FINISH with an ID block', () => {
  const idKey = keyPairFromSeed(createEntropy('id key').bytes(56));
  const authorKey = keyPairFromSeed(createEntropy('author key').bytes(56));
  const [BLOCK, AUTHOR] = [1, 3];

  /** An ID block for a digest and policy, and its authentication. */
  function identity(digest: Uint8Array, policy: bigint) {
    const block = new Uint8Array(ID_BLOCK.size);
    ID_BLOCK.ld.set(block, digest);
    ID_BLOCK.policy.set(block, policy);
    ID_BLOCK.version.set(block, 1);
    ID_BLOCK.guestSvn.set(block, 5);
    ID_BLOCK.familyId.set(block, new Uint8Array(16).fill(1));
    ID_BLOCK.imageId.set(block, new Uint8Array(16).fill(2));
    const auth = new Uint8Array(ID_AUTH.size);
    ID_AUTH.idKeyAlgo.set(auth, 1);
    ID_AUTH.authKeyAlgo.set(auth, 1);
    ID_AUTH.idKey.set(auth, encodeEcPublicKey(idKey.publicKey));
    ID_AUTH.authorKey.set(auth, encodeEcPublicKey(authorKey.publicKey));
    ID_AUTH.idBlockSig.set(auth, encodeEcSignature(sign('sha384', idKey.privateKey, block)));
    ID_AUTH.idKeySig.set(auth, encodeEcSignature(sign('sha384', authorKey.privateKey, encodeEcPublicKey(idKey.publicKey))));
    return { block, auth };
  }

  function finish(flags: number, change: (identity: { block: Uint8Array; auth: Uint8Array }) => void) {
    const rig = initialised();
    const guest = rig.launchingGuest();
    const digest = extendSnpDigest(new Uint8Array(48), {
      type: PAGE_TYPE.SECRETS,
      gpa: 0x80d000,
      permissions: [0, 0, 0],
      plaintext: new Uint8Array(PAGE_SIZE),
    });
    const made = identity(digest, POLICY);
    change(made);
    return { rig, guest, status: rig.launchFinish(guest.context, flags, rig.place(made.block), rig.place(made.auth)) };
  }

  it('accepts one that fits, and reports it', () => {
    const { rig, guest, status } = finish(AUTHOR, () => undefined);
    expect(status).toBe(STATUS.SUCCESS);
    const { report } = rig.report(guest);
    expect([REPORT.guestSvn.get(report), REPORT.keyInfo.get(report) & 1]).toEqual([5, 1]);
    expect(hex(REPORT.familyId.get(report))).toBe('01'.repeat(16));
    expect(REPORT.authorKeyDigest.get(report).some((byte) => byte !== 0)).toBe(true);
    expect(hex(REPORT.hostData.get(report))).toBe('11'.repeat(32));
  });

  it('refuses others, in the order of its checks', () => {
    const flip = (bytes: Uint8Array, at: number): void => {
      bytes[at] ^= 1;
    };
    expect(finish(8, () => undefined).status).toBe(STATUS.INVALID_PARAM);
    expect(finish(BLOCK, ({ auth }) => flip(auth, 0x644)).status).toBe(STATUS.INVALID_PARAM);
    expect(finish(BLOCK, ({ block }) => flip(block, 80)).status).toBe(STATUS.INVALID_PARAM);
    expect(finish(BLOCK, ({ block }) => flip(block, 0)).status).toBe(STATUS.BAD_MEASUREMENT);
    expect(finish(BLOCK, ({ block }) => flip(block, 88)).status).toBe(STATUS.POLICY_FAILURE);
    expect(finish(BLOCK, ({ block }) => flip(block, 48)).status).toBe(STATUS.BAD_SIGNATURE);
    expect(finish(BLOCK, ({ auth }) => flip(auth, 0x40)).status).toBe(STATUS.BAD_SIGNATURE);
    expect(finish(AUTHOR, ({ auth }) => flip(auth, 0x680)).status).toBe(STATUS.BAD_SIGNATURE);
    expect(finish(BLOCK, ({ auth }) => flip(auth, 0x680)).status).toBe(STATUS.SUCCESS);
  });

  it.skipIf(vectorsAbsent)(
    `accepts the block that virtee/sev publishes, with the digests of its keys (${VECTORS_NEEDED})`,
    () => {
      const [block, auth] = [vector('idblock/id-block.bin'), vector('idblock/id-auth.bin')];
      const request = { block, auth, hasAuthorKey: true, digest: ID_BLOCK.ld.get(block), policy: ID_BLOCK.policy.get(block) };
      const checked = checkIdBlock(request);
      if (typeof checked === 'number') throw new Error(`status ${checked}`);
      expect(hex(checked.idKeyDigest)).toBe(
        '59fb2c686dfa4fef49f38339aa775c90051c28d57383ddc3baf3b5eb4b1496df3b0dbbdcbae5fe27677a644820773fe2',
      );
      expect(hex(checked.authorKeyDigest ?? unhex(''))).toBe(
        'eed81169fb0cb5e0ec34794f128fd4e0c4a46f67c65a1adfa81fcb24bcc088c272369b7ffc3eb2b6af6a4284a1b36c5f',
      );
    },
  );
});
