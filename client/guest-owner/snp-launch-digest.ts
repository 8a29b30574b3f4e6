import { createHash } from 'node:crypto';
import { viewOf } from './bytes.js';
import { kernelHashes } from './kernel-hashes.js';
import { type LaunchImage, type MeasuredVcpus, vmsaPages } from './launch-digest.js';
import { OVMF_SECTION, type Ovmf, type OvmfSection, parseOvmf } from './ovmf.js';

/** `type` of KVM_SEV_SNP_LAUNCH_UPDATE, and of PAGE_INFO. */
export const SNP_PAGE = { NORMAL: 1, VMSA: 2, ZERO: 3, UNMEASURED: 4, SECRETS: 5, CPUID: 6 } as const;
type SnpPage = (typeof SNP_PAGE)[keyof typeof SNP_PAGE];

const PAGE = 4096;
const DIGEST = 48;
const PAGE_INFO_LENGTH = 0x70;
/** Where KVM says that save areas are: the last page below 2^48. */
const VMSA_GPA = 0xffff_ffff_f000n;

const sha384 = (bytes: Uint8Array): Uint8Array => createHash('sha384').update(bytes).digest();

/**
 * The launch digest of a SEV-SNP guest: a chain with one link, a PAGE_INFO, for each page (SNP ABI, 8.17.2). Unlike the digest of
 * SEV it covers the address and the kind of every page.
 */
export class SnpLaunchDigest {
  private digest: Uint8Array = new Uint8Array(DIGEST);

  /** 48 bytes. */
  get value(): Uint8Array {
    return Uint8Array.from(this.digest);
  }

  /** Pages whose contents count, from a multiple of 4 KiB on. */
  updateNormal(gpa: bigint, bytes: Uint8Array): this {
    for (let offset = 0; offset < bytes.length; offset += PAGE)
      this.update(SNP_PAGE.NORMAL, gpa + BigInt(offset), sha384(bytes.subarray(offset, offset + PAGE)));
    return this;
  }

  /** A vCPU's save area. */
  updateVmsa(page: Uint8Array): this {
    return this.update(SNP_PAGE.VMSA, VMSA_GPA, sha384(page));
  }

  /** Pages of which only address and kind count. */
  updateUnread(type: Exclude<SnpPage, typeof SNP_PAGE.NORMAL | typeof SNP_PAGE.VMSA>, gpa: bigint, length: number): this {
    for (let offset = 0; offset < length; offset += PAGE) this.update(type, gpa + BigInt(offset), new Uint8Array(DIGEST));
    return this;
  }

  private update(type: SnpPage, gpa: bigint, contents: Uint8Array): this {
    const info = new Uint8Array(PAGE_INFO_LENGTH);
    info.set(this.digest, 0);
    info.set(contents, 0x30);
    const view = viewOf(info);
    view.setUint16(0x60, PAGE_INFO_LENGTH, true);
    view.setUint8(0x62, type);
    view.setBigUint64(0x68, gpa, true);
    this.digest = sha384(info);
    return this;
  }
}

/** What only a SEV-SNP launch knows. */
export interface SnpLaunchOptions {
  readonly vcpus: MeasuredVcpus;
  /** SEV_FEATURES of the save areas. @default 1, SNP active */
  readonly sevFeatures?: bigint;
}

const UNREAD = {
  [OVMF_SECTION.SEC_MEM]: SNP_PAGE.ZERO,
  [OVMF_SECTION.SECRETS]: SNP_PAGE.SECRETS,
  [OVMF_SECTION.CPUID]: SNP_PAGE.CPUID,
  [OVMF_SECTION.SVSM_CAA]: SNP_PAGE.ZERO,
} as const;

const isUnread = (type: number): type is keyof typeof UNREAD => type in UNREAD;

/** KVM launches whole pages. */
const requirePages = ({ gpa, size, type }: OvmfSection): void => {
  if (gpa % PAGE !== 0 || size % PAGE !== 0)
    throw new RangeError(
      `the OVMF image has a section of type ${type} with 0x${size.toString(16)} bytes at 0x${gpa.toString(16)}, which are no whole pages of ${PAGE}`,
    );
};

/** Bit 0 of SEV_FEATURES: SEV-SNP is active. */
const SNP_ACTIVE = 1n;

const updateSection = (digest: SnpLaunchDigest, section: OvmfSection, hashes: Uint8Array | null): void => {
  requirePages(section);
  const { gpa, size, type } = section;
  if (isUnread(type)) digest.updateUnread(UNREAD[type], BigInt(gpa), size);
  else if (type !== OVMF_SECTION.KERNEL_HASHES) throw new RangeError(`the OVMF image has a section of the unknown type ${type}`);
  else if (hashes === null) digest.updateUnread(SNP_PAGE.ZERO, BigInt(gpa), size);
  else digest.updateNormal(BigInt(gpa), hashes);
};

/** The page of kernel hashes: the table, at its offset in an otherwise empty page. */
const hashesPage = ({ hashTable, sections }: Ovmf, { boot }: LaunchImage): Uint8Array | null => {
  if (boot === undefined) return null;
  if (hashTable === null || !sections.some(({ type }) => type === OVMF_SECTION.KERNEL_HASHES))
    throw new RangeError('this OVMF image has no page for the hashes of a kernel');
  const page = new Uint8Array(PAGE);
  page.set(kernelHashes(boot), hashTable.gpa % PAGE);
  return page;
};

/**
 * The launch digest of a SEV-SNP guest as QEMU launches it: the OVMF image, the sections of its metadata in their order, and the
 * save areas.
 * @throws RangeError if the image is none, or has no place for the kernel's hashes
 */
export const snpLaunchDigest = (image: LaunchImage, { vcpus, sevFeatures = 1n }: SnpLaunchOptions): Uint8Array => {
  if ((sevFeatures & SNP_ACTIVE) === 0n)
    throw new RangeError(`SEV_FEATURES are 0x${sevFeatures.toString(16)}, and bit 0 of a SEV-SNP guest's is 1`);
  const ovmf = parseOvmf(image.firmware);
  if (image.firmware.length % PAGE !== 0)
    throw new RangeError(`the OVMF image has ${image.firmware.length} bytes, which are no whole pages of ${PAGE}`);
  if (ovmf.sections.length === 0) throw new RangeError('this is no OVMF image for SEV-SNP: it has no SEV metadata');
  const hashes = hashesPage(ovmf, image);
  const digest = new SnpLaunchDigest().updateNormal(ovmf.gpa, ovmf.image);
  for (const section of ovmf.sections) updateSection(digest, section, hashes);
  for (const page of vmsaPages(ovmf.resetEip, vcpus, sevFeatures)) digest.updateVmsa(page);
  return digest.value;
};
