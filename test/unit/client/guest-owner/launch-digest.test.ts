import { describe, expect, it } from 'vitest';
import {
  CPU_SIGNATURE,
  kernelHashes,
  launchDigest,
  launchMeasurement,
  parseOvmf,
  SnpLaunchDigest,
  sevEsLaunchDigest,
  sevLaunchDigest,
  snpLaunchDigest,
  verifyMeasurement,
} from '../../../../client/guest-owner/index.js';
import { requires } from '../../../helpers/requirements.js';
import { expectedText, expectedValue, flipped, hex, unhex, vector } from './vectors.js';

const AMD_SEV = () => vector('measure/ovmf_AmdSev_suffix.bin');
const OVMF_X64 = () => vector('measure/ovmf_OvmfX64_suffix.bin');
const NO_KERNEL = new Uint8Array(0);
const vcpus = (count: number) => ({ count, cpuSignature: CPU_SIGNATURE.EPYC });

describe('launch digests of public images', () => {
  requires('vectors', 'launch digests of public images');

  it.each([0, 1])('SEV: image %i', (row) => {
    const boot = row === 0 ? { kernel: NO_KERNEL, cmdline: 'console=ttyS0 loglevel=7' } : undefined;
    const firmware = row === 0 ? AMD_SEV() : OVMF_X64();
    const image = boot === undefined ? { firmware } : { firmware, boot };
    expect(hex(sevLaunchDigest(image))).toBe(expectedText('legacy', 'ld256', row, 'ld'));
  });

  it.each([2, 3])('SEV-ES: image %i, with the save areas of its vCPUs', (row) => {
    const image = { firmware: AMD_SEV(), boot: { kernel: NO_KERNEL, cmdline: '' } };
    const count = Number(expectedValue('legacy', 'ld256', row, 'vcpus'));
    expect(hex(sevEsLaunchDigest(image, vcpus(count)))).toBe(expectedText('legacy', 'ld256', row, 'ld'));
  });

  it.each([0, 1, 2, 3, 4, 5, 6, 7])('SEV-SNP: image %i, with the sections of its metadata', (row) => {
    const field = (name: string) => expectedValue('snpLaunchDigest', 'rows', row, name);
    const firmware = field('ovmf') === 'AmdSev' ? AMD_SEV() : OVMF_X64();
    const boot = { kernel: NO_KERNEL, cmdline: String(field('cmdline')) };
    const image = field('kernel') === null ? { firmware } : { firmware, boot };
    const options = { vcpus: vcpus(Number(field('vcpus'))), sevFeatures: BigInt(String(field('guestFeatures'))) };
    expect(hex(snpLaunchDigest(image, options))).toBe(field('ld'));
  });

  it('SEV-SNP: the image alone', () => {
    const { gpa, image } = parseOvmf(AMD_SEV());
    const { value } = new SnpLaunchDigest().updateNormal(gpa, image);
    expect(hex(value)).toBe(expectedText('snpLaunchDigest', 'ovmfOnly_AmdSev'));
  });

  it('changes with every bit of the image', () => {
    const digest = (firmware: Uint8Array) => hex(snpLaunchDigest({ firmware }, { vcpus: vcpus(1) }));
    expect(digest(flipped(AMD_SEV(), 5))).not.toBe(digest(AMD_SEV()));
  });

  it('wants a place for the hashes of a kernel', () => {
    const image = { firmware: OVMF_X64(), boot: { kernel: NO_KERNEL } };
    expect(() => sevLaunchDigest(image)).toThrow(RangeError);
    expect(() => snpLaunchDigest(image, { vcpus: vcpus(1) })).toThrow(RangeError);
  });

  it('wants an image that can be launched, and a vCPU', () => {
    const snp =
      (firmware: Uint8Array, count = 1) =>
      () =>
        snpLaunchDigest({ firmware }, { vcpus: vcpus(count) });
    expect(snp(AMD_SEV().subarray(16))).toThrow('4080 bytes, which are no whole pages');
    expect(snp(new Uint8Array(4096))).toThrow('it has no SEV metadata');
    expect(snp(AMD_SEV(), 0)).toThrow('1 to 4096 vCPUs, not 0');
    expect(snp(AMD_SEV(), 4097)).toThrow('1 to 4096 vCPUs, not 4097');
    expect(() => sevLaunchDigest({ firmware: new Uint8Array(0) })).toThrow('the firmware has 0 bytes');
    expect(() => sevLaunchDigest({ firmware: new Uint8Array(24) })).toThrow('the firmware has 24 bytes');
  });

  it('says of an image with damaged metadata what is wrong with it', () => {
    const image = AMD_SEV();
    const at = Buffer.from(image).indexOf('ASEV');
    const altered = (offset: number, value: number) => () => {
      const copy = Uint8Array.from(image);
      new DataView(copy.buffer).setUint32(at + offset, value, true);
      parseOvmf(copy);
    };
    expect(altered(0, 0)).toThrow('no SEV metadata where it says so');
    expect(altered(8, 2)).toThrow('of version 2, not 1');
    expect(altered(12, 0xffff_ffff)).toThrow('4294967295 sections, for which there is no room');
  });

  it('reads no image, however it is damaged, past its ends', () => {
    const image = AMD_SEV();
    for (let offset = image.length - 400; offset < image.length; offset++)
      for (const value of [0, 0xff, 0x80]) {
        let message = '';
        try {
          parseOvmf(image.with(offset, value));
        } catch (error) {
          message = error instanceof RangeError ? error.message : String(error);
        }
        expect(message, `byte ${offset}`).toMatch(/^$|OVMF image/);
      }
  });
});

describe('measurements of public launches', () => {
  requires('vectors', 'public launch measurements');

  it('of sev-tool', () => {
    const text = (name: string) => expectedText('legacy', 'launchMeasure', 0, name);
    const measured = { apiMajor: 0, apiMinor: 18, build: 15, policy: 0, digest: launchDigest() };
    expect(hex(launchMeasurement(unhex(text('tik')), measured, unhex(text('mnonce'))))).toBe(text('measure'));
  });

  const FIRMWARE = 'sevctl/OVMF.amdsev.fd_trimmed_edk2-ovmf-20220126gitbb1bba3d77-4.el9';
  const cases: readonly (readonly [string, number, () => Uint8Array])[] = [
    ['a digest', 1, () => unhex(expectedText('legacy', 'launchMeasure', 1, 'ld'))],
    ['a firmware', 2, () => launchDigest(vector(FIRMWARE))],
    ['a firmware and a kernel', 3, () => launchDigest(vector(FIRMWARE), kernelHashes(sevctlBoot()))],
    [
      'a firmware and save areas',
      4,
      () => launchDigest(vector(FIRMWARE), ...[0, 1, 1, 1].map((n) => vector(`sevctl/vmsa${n}.bin`))),
    ],
  ];
  const sevctlBoot = () => ({
    kernel: vector('sevctl/measurement-vmlinuz-fake'),
    initrd: vector('sevctl/measurement-initrd-fake'),
    cmdline: 'foo bar baz fake kernel=cmdline',
  });

  it.each(cases)('of sevctl: %s', (_what, row, digest) => {
    const version = row === 4 ? { apiMinor: 49, build: 6, policy: 5 } : { apiMinor: 40, build: 40, policy: 3 };
    const measured = { apiMajor: 1, ...version, digest: digest() };
    const blob = unhex(expectedText('legacy', 'launchMeasure', row, 'blob48'));
    const tik = vector('sevctl/measurement-tik1.bin');
    expect(verifyMeasurement(blob, tik, measured)).toBe(true);
    for (let bit = 0; bit < blob.length * 8; bit++) expect(verifyMeasurement(flipped(blob, bit), tik, measured)).toBe(false);
    expect(verifyMeasurement(blob, tik, { ...measured, policy: measured.policy ^ 1 })).toBe(false);
    const refused =
      (change: object, measurement = blob, key = tik) =>
      () =>
        verifyMeasurement(measurement, key, { ...measured, ...change });
    expect(refused({}, blob.subarray(1))).toThrow('the measurement has 47 bytes instead of 48');
    expect(refused({}, blob, tik.subarray(1))).toThrow('(TIK) has 15 bytes instead of 16');
    expect(refused({ digest: new Uint8Array(48) })).toThrow('the expected launch digest has 48 bytes instead of 32');
    expect(refused({ apiMinor: 256 })).toThrow('apiMinor is 256');
  });
});
