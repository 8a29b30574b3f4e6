import { describe, expect, it } from 'vitest';
import {
  addSignature,
  createCertificate,
  isSignedBy,
  parseCertificate,
  SEV_CERTIFICATE,
  USAGE,
  type Usage,
} from '../../../../server/hardware/amd/certificates.js';
import {
  DOWNLOAD_FIRMWARE,
  GET_ID,
  INIT,
  INIT_EX,
  PDH_CERT_EXPORT,
  PEK_CERT_IMPORT,
  PEK_CSR,
  PLATFORM_STATUS,
} from '../../../../server/hardware/amd/command-buffers.js';
import { keyPairFromSeed } from '../../../../server/hardware/amd/p384.js';
import { STATUS, statusName } from '../../../../server/hardware/amd/status.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { hpa } from '../../../../server/hardware/units.js';
import { guestInState } from './guests.js';
import { createRig, hex, type Rig, type Setting, set } from './rig.js';
import { createSnpRig } from './snp/snp-rig.js';

const NV_LENGTH = 0x8000;

function parse(bytes: Uint8Array, usage: Usage) {
  const certificate = parseCertificate(bytes, usage);
  if (certificate === null) throw new Error('the certificate does not parse');
  return certificate;
}

/** PEK, OCA and CEK of a platform. */
function chainOf(rig: Rig) {
  const { pdh, chain } = rig.exportCertificates();
  const part = (index: number): Uint8Array => chain.subarray(index * SEV_CERTIFICATE.size, (index + 1) * SEV_CERTIFICATE.size);
  return {
    pdh: parse(pdh, USAGE.PDH),
    pek: parse(part(0), USAGE.PEK),
    oca: parse(part(1), USAGE.OCA),
    cek: parse(part(2), USAGE.CEK),
  };
}

const isOwned = (rig: Rig): number => PLATFORM_STATUS.owner.get(rig.issue('PLATFORM_STATUS', PLATFORM_STATUS).buffer);

describe('the mailbox', () => {
  it('refuses unknown commands, and command buffers that are no memory', () => {
    const rig = createRig();
    expect(rig.processor.issue(0x7f, hpa(0))).toBe(STATUS.INVALID_COMMAND);
    expect(rig.processor.issue(0x04, hpa(2 ** 45))).toBe(STATUS.INVALID_ADDRESS);
    expect(rig.ledger.counts.size).toBe(1);
  });

  it('names statuses for messages', () => {
    expect(statusName(STATUS.INVALID_ASID)).toBe('INVALID_ASID');
    expect(statusName(0x8006)).toBe('0x8006');
  });
});

describe('INIT', () => {
  const status = (rig: Rig, ...settings: Setting[]) => rig.issue('INIT', INIT, ...settings).status;
  const es = set(INIT.options, 1);

  it('checks options, then the length and alignment of the trusted memory region', () => {
    const rig = createRig();
    expect(status(rig, set(INIT.options, 2))).toBe(STATUS.INVALID_PARAM);
    expect(status(rig, es, set(INIT.tmrLength, 0xf_ffff))).toBe(STATUS.INVALID_LENGTH);
    expect(status(rig, es, set(INIT.tmrLength, 0x10_0000), set(INIT.tmrPaddr, 0x1000))).toBe(STATUS.INVALID_ADDRESS);
    expect(status(rig, es, set(INIT.tmrLength, 0x10_0000), set(INIT.tmrPaddr, 0x10_0000))).toBe(STATUS.SUCCESS);
    expect(status(rig)).toBe(STATUS.INVALID_PLATFORM_STATE);
  });

  it('wants a large page for it while SEV-SNP is initialised', () => {
    const rig = createSnpRig();
    rig.snpInit();
    const tmr = (address: number, length: number) =>
      rig.issue('INIT', INIT, es, set(INIT.tmrPaddr, address), set(INIT.tmrLength, length)).status;
    expect(tmr(0x20_0000, 0x10_0000)).toBe(STATUS.INVALID_LENGTH);
    expect(tmr(0x10_0000, 0x20_0000)).toBe(STATUS.INVALID_ADDRESS);
    expect(tmr(0x20_0000, 0x20_0000)).toBe(STATUS.SUCCESS);
  });

  it('has no SEV-ES where no ASID is left for it', () => {
    expect(status(createRig({ asids: { count: 4, minSev: 1 } }), es, set(INIT.tmrLength, 0x10_0000))).toBe(STATUS.INVALID_CONFIG);
  });

  it('shows in PLATFORM_STATUS', () => {
    const rig = createRig();
    const read = () => rig.issue('PLATFORM_STATUS', PLATFORM_STATUS).buffer;
    expect(hex(read())).toBe('0137000000000019' + '00000000');
    rig.init();
    expect(hex(read())).toBe('0137010001000019' + '00000000');
    rig.launchStart();
    rig.launchStart();
    expect(hex(read())).toBe('0137020001000019' + '02000000');
  });
});

describe('SHUTDOWN', () => {
  it('drops every guest and key and keeps the identity', () => {
    const rig = createRig();
    rig.init();
    const before = rig.exportCertificates();
    guestInState(rig, 'running', 5);
    expect(rig.issue('SHUTDOWN').status).toBe(STATUS.SUCCESS);
    expect(rig.processor.guests()).toEqual([]);
    expect(rig.asidKeys.loaded()).toEqual([]);
    rig.init();
    expect(rig.processor.guests()).toEqual([]);
    expect(hex(rig.exportCertificates().chain)).toBe(hex(before.chain));
  });
});

describe('the identity of a platform', () => {
  it('chains from the PDH to the owner and to the chip', () => {
    const rig = createRig();
    rig.init();
    const { pdh, pek, oca, cek } = chainOf(rig);
    expect(isSignedBy(pdh, pek)).toBe(true);
    expect(isSignedBy(pek, oca)).toBe(true);
    expect(isSignedBy(pek, cek)).toBe(true);
    expect(isSignedBy(oca, oca)).toBe(true);
    expect(SEV_CERTIFICATE.sig1Usage.get(cek.bytes)).toBe(USAGE.NONE);
  });

  it('is the same for the same seed whatever happened before it was asked for, and another for another seed', () => {
    const [one, two, other] = [createRig(), createRig(), createRig({ seed: 'other' })];
    for (const rig of [one, two, other]) rig.init();
    guestInState(two, 'running', 5);
    expect(hex(one.exportCertificates().chain)).toBe(hex(two.exportCertificates().chain));
    expect(hex(one.exportCertificates().chain)).not.toBe(hex(other.exportCertificates().chain));
  });

  it('changes as PEK_GEN, PDH_GEN and PLATFORM_RESET say, but the chip does not', () => {
    const rig = createRig();
    rig.init();
    const first = chainOf(rig);
    rig.issue('PDH_GEN');
    const second = chainOf(rig);
    expect(hex(second.pek.bytes)).toBe(hex(first.pek.bytes));
    expect(hex(second.pdh.publicKey.x)).not.toBe(hex(first.pdh.publicKey.x));
    expect(isSignedBy(second.pdh, first.pek)).toBe(true);
    rig.issue('PEK_GEN');
    const third = chainOf(rig);
    for (const part of ['pdh', 'pek', 'oca'] as const)
      expect(hex(third[part].publicKey.x)).not.toBe(hex(second[part].publicKey.x));
    rig.issue('SHUTDOWN');
    rig.issue('PLATFORM_RESET');
    rig.init();
    const fourth = chainOf(rig);
    for (const part of ['pdh', 'pek', 'oca'] as const)
      expect(hex(fourth[part].publicKey.x)).not.toBe(hex(third[part].publicKey.x));
    expect(hex(fourth.cek.bytes)).toBe(hex(first.cek.bytes));
  });

  it('answers short buffers with the lengths it needs', () => {
    const rig = createRig();
    rig.init();
    const csr = rig.issue('PEK_CSR', PEK_CSR);
    expect([csr.status, PEK_CSR.csrLength.get(csr.buffer)]).toEqual([STATUS.INVALID_LENGTH, 2084]);
    const half = rig.issue('PDH_CERT_EXPORT', PDH_CERT_EXPORT, set(PDH_CERT_EXPORT.pdhCertLength, 2084));
    expect(half.status).toBe(STATUS.INVALID_LENGTH);
    expect([PDH_CERT_EXPORT.pdhCertLength.get(half.buffer), PDH_CERT_EXPORT.certsLength.get(half.buffer)]).toEqual([2084, 6252]);
    const id = rig.issue('GET_ID', GET_ID);
    expect([id.status, GET_ID.idLength.get(id.buffer)]).toEqual([STATUS.INVALID_LENGTH, 64]);
    expect(rig.issue('GET_ID', GET_ID, set(GET_ID.idLength, 64), set(GET_ID.idPaddr, rig.frame().hpa + 4)).status).toBe(
      STATUS.INVALID_ADDRESS,
    );
  });
});

describe('PEK_CERT_IMPORT', () => {
  const api = { major: 1, minor: 55 };
  const owner = keyPairFromSeed(createEntropy('owner').bytes(56));
  const ownerCertificate = createCertificate(USAGE.OCA, owner.publicKey, api, [{ usage: USAGE.OCA, key: owner }]);

  function request(rig: Rig): Uint8Array {
    const paddr = rig.place(new Uint8Array(SEV_CERTIFICATE.size));
    rig.issue('PEK_CSR', PEK_CSR, set(PEK_CSR.csrPaddr, paddr), set(PEK_CSR.csrLength, SEV_CERTIFICATE.size));
    return rig.cells(paddr, SEV_CERTIFICATE.size);
  }

  function importCertificates(rig: Rig, pek: Uint8Array, oca: Uint8Array) {
    return rig.issue(
      'PEK_CERT_IMPORT',
      PEK_CERT_IMPORT,
      set(PEK_CERT_IMPORT.pekCertPaddr, rig.place(pek)),
      set(PEK_CERT_IMPORT.pekCertLength, pek.length),
      set(PEK_CERT_IMPORT.ocaCertPaddr, rig.place(oca)),
      set(PEK_CERT_IMPORT.ocaCertLength, oca.length),
    ).status;
  }

  it('gives the platform an owner, once, until PEK_GEN takes it away', () => {
    const rig = createRig();
    rig.init();
    const before = chainOf(rig);
    const pek = addSignature(request(rig), { usage: USAGE.OCA, key: owner });
    expect(importCertificates(rig, pek, ownerCertificate)).toBe(STATUS.SUCCESS);
    expect(isOwned(rig)).toBe(1);
    const after = chainOf(rig);
    expect(hex(after.oca.bytes)).toBe(hex(ownerCertificate));
    expect(hex(after.pek.publicKey.x)).toBe(hex(before.pek.publicKey.x));
    expect(isSignedBy(after.pek, after.oca) && isSignedBy(after.pek, after.cek) && isSignedBy(after.pdh, after.pek)).toBe(true);
    expect(hex(after.pdh.publicKey.x)).not.toBe(hex(before.pdh.publicKey.x));
    expect(importCertificates(rig, pek, ownerCertificate)).toBe(STATUS.ALREADY_OWNED);
    rig.issue('PEK_GEN');
    expect(isOwned(rig)).toBe(0);
  });

  it('refuses certificates that are too short, unsigned, of another key or by another owner', () => {
    const rig = createRig();
    rig.init();
    const csr = request(rig);
    const pek = addSignature(csr, { usage: USAGE.OCA, key: owner });
    const stranger = keyPairFromSeed(createEntropy('stranger').bytes(56));
    const flip = (bytes: Uint8Array, at: number): Uint8Array => bytes.map((byte, index) => (index === at ? byte ^ 1 : byte));
    expect(importCertificates(rig, pek.subarray(1), ownerCertificate)).toBe(STATUS.INVALID_LENGTH);
    expect(importCertificates(rig, pek, ownerCertificate.subarray(1))).toBe(STATUS.INVALID_LENGTH);
    const refused: readonly (readonly [Uint8Array, Uint8Array])[] = [
      [pek, flip(ownerCertificate, SEV_CERTIFICATE.sig1.offset)],
      [pek, createCertificate(USAGE.OCA, owner.publicKey, api, [])],
      [pek, createCertificate(USAGE.PEK, owner.publicKey, api, [{ usage: USAGE.PEK, key: owner }])],
      [csr, ownerCertificate],
      [addSignature(csr, { usage: USAGE.OCA, key: stranger }), ownerCertificate],
      [createCertificate(USAGE.PEK, stranger.publicKey, api, [{ usage: USAGE.OCA, key: owner }]), ownerCertificate],
    ];
    for (const [pekBytes, ocaBytes] of refused)
      expect(importCertificates(rig, pekBytes, ocaBytes)).toBe(STATUS.INVALID_CERTIFICATE);
    expect(isOwned(rig)).toBe(0);
    expect(importCertificates(rig, pek, ownerCertificate)).toBe(STATUS.SUCCESS);
  });
});

describe('DOWNLOAD_FIRMWARE', () => {
  it('takes an image that the root signed and that is not older, and reports and certifies its version', () => {
    const rig = createRig();
    const download = (image: Uint8Array, shift = 0) => {
      const placed = rig.place(Buffer.concat([new Uint8Array(shift), image]));
      const settings = [set(DOWNLOAD_FIRMWARE.fwPaddr, placed + shift), set(DOWNLOAD_FIRMWARE.fwLength, image.length)];
      return rig.issue('DOWNLOAD_FIRMWARE', DOWNLOAD_FIRMWARE, ...settings).status;
    };
    const image = rig.keyDistribution.firmwareImage({ major: 1, minor: 57, build: 3 });
    const altered = Uint8Array.from(image);
    altered[5] = 99;
    expect(download(image.subarray(1))).toBe(STATUS.INVALID_LENGTH);
    expect(download(image, 16)).toBe(STATUS.INVALID_ADDRESS);
    expect(download(altered)).toBe(STATUS.BAD_SIGNATURE);
    expect(download(rig.keyDistribution.firmwareImage({ major: 1, minor: 54, build: 99 }))).toBe(STATUS.BAD_VERSION);
    expect(download(image)).toBe(STATUS.SUCCESS);
    const status = rig.issue('PLATFORM_STATUS', PLATFORM_STATUS).buffer;
    expect([PLATFORM_STATUS.apiMinor.get(status), PLATFORM_STATUS.build.get(status)]).toEqual([57, 3]);
    rig.init();
    expect(chainOf(rig).pdh.api).toEqual({ major: 1, minor: 57 });
  });
});

describe('INIT_EX', () => {
  function initEx(rig: Rig, nvPaddr: number, ...settings: Setting[]) {
    const all = [set(INIT_EX.length, INIT_EX.size), set(INIT_EX.nvPaddr, nvPaddr), set(INIT_EX.nvLength, NV_LENGTH), ...settings];
    return rig.issue('INIT_EX', INIT_EX, ...all).status;
  }
  const emptyBuffer = (rig: Rig): number => rig.place(new Uint8Array(NV_LENGTH).fill(0xff));

  it('keeps the identity in the buffer that it is given, where no key can be read', () => {
    const rig = createRig();
    const nvPaddr = emptyBuffer(rig);
    expect(initEx(rig, nvPaddr)).toBe(STATUS.SUCCESS);
    const before = rig.exportCertificates();
    rig.issue('SHUTDOWN');
    const saved = rig.cells(nvPaddr, NV_LENGTH);
    expect(hex(saved)).not.toContain(hex(before.pdh.subarray(0x14, 0x24)));
    expect(initEx(rig, rig.place(saved))).toBe(STATUS.SUCCESS);
    expect(hex(rig.exportCertificates().chain)).toBe(hex(before.chain));
    expect(hex(rig.exportCertificates().pdh)).toBe(hex(before.pdh));
  });

  it.each([0, 20, 100, NV_LENGTH - 1])('refuses a buffer whose byte %i was altered, and accepts it the second time', (at) => {
    const rig = createRig();
    const nvPaddr = emptyBuffer(rig);
    initEx(rig, nvPaddr);
    rig.issue('SHUTDOWN');
    const altered = rig.cells(nvPaddr, NV_LENGTH).map((byte, index) => (index === at ? byte ^ 1 : byte));
    const paddr = rig.place(altered);
    expect(initEx(rig, paddr)).toBe(STATUS.SECURE_DATA_INVALID);
    expect(rig.processor.state).toBe('uninit');
    expect(initEx(rig, paddr)).toBe(STATUS.SUCCESS);
  });

  it('refuses what another chip has sealed', () => {
    const rig = createRig();
    const nvPaddr = emptyBuffer(rig);
    initEx(rig, nvPaddr);
    const stranger = createRig({ seed: 'stranger' });
    expect(initEx(stranger, stranger.place(rig.cells(nvPaddr, NV_LENGTH)))).toBe(STATUS.SECURE_DATA_INVALID);
  });

  it('is followed by every change of the identity, and PLATFORM_RESET empties the buffer', () => {
    const rig = createRig();
    const nvPaddr = emptyBuffer(rig);
    initEx(rig, nvPaddr);
    const images = [rig.cells(nvPaddr, NV_LENGTH)];
    for (const command of ['PDH_GEN', 'PEK_GEN'] as const) {
      rig.issue(command);
      images.push(rig.cells(nvPaddr, NV_LENGTH));
    }
    expect(new Set(images.map(hex)).size).toBe(3);
    rig.issue('SHUTDOWN');
    rig.issue('PLATFORM_RESET');
    expect(rig.cells(nvPaddr, NV_LENGTH).every((byte) => byte === 0xff)).toBe(true);
  });

  it('makes no key a second time when the chip begins again from its seed with what it has stored', () => {
    const first = createRig();
    const nvPaddr = emptyBuffer(first);
    initEx(first, nvPaddr);
    const images = [first.cells(nvPaddr, NV_LENGTH)];
    const seen = [first.exportCertificates().pdh];
    for (let start = 0; start < 3; start++) {
      const rig = createRig();
      const paddr = rig.place(images.at(-1) ?? new Uint8Array(0));
      expect(initEx(rig, paddr)).toBe(STATUS.SUCCESS);
      expect(hex(rig.exportCertificates().pdh)).toBe(hex(seen.at(-1) ?? new Uint8Array(0)));
      rig.issue('PDH_GEN');
      seen.push(rig.exportCertificates().pdh);
      images.push(rig.cells(paddr, NV_LENGTH));
    }
    expect(new Set(seen.map(hex)).size).toBe(4);
    // Nor does it seal two images under one initialisation vector.
    expect(new Set(images.map((image) => hex(image.subarray(0, 12)))).size).toBe(4);
  });

  it('checks its own length and the length and address of the buffer', () => {
    const rig = createRig();
    const nvPaddr = emptyBuffer(rig);
    expect(initEx(rig, nvPaddr, set(INIT_EX.length, 20))).toBe(STATUS.INVALID_LENGTH);
    expect(initEx(rig, nvPaddr, set(INIT_EX.nvLength, 0x7000))).toBe(STATUS.INVALID_LENGTH);
    expect(initEx(rig, 2 ** 44)).toBe(STATUS.INVALID_ADDRESS);
    expect(initEx(rig, nvPaddr, set(INIT_EX.options, 4))).toBe(STATUS.INVALID_PARAM);
    expect(rig.processor.state).toBe('uninit');
  });
});
