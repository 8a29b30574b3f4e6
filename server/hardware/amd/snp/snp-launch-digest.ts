import { createHash } from 'node:crypto';
import { blob, struct, u8, u16, u64 } from '../byte-layout.js';

/** Types of pages that SNP_LAUNCH_UPDATE takes. */
export const PAGE_TYPE = { NORMAL: 1, VMSA: 2, ZERO: 3, UNMEASURED: 4, SECRETS: 5, CPUID: 6 } as const;
export type PageType = (typeof PAGE_TYPE)[keyof typeof PAGE_TYPE];

const pageTypes: readonly number[] = Object.values(PAGE_TYPE);
export const isPageType = (value: number): value is PageType => pageTypes.includes(value);

/** Bytes of an SNP launch digest. */
export const SNP_DIGEST_LENGTH = 48;

/** One link of the launch digest's chain (sev-firmware.md 3.10). */
const PAGE_INFO = struct(0x70, {
  digestCur: blob(0x00, SNP_DIGEST_LENGTH),
  contents: blob(0x30, SNP_DIGEST_LENGTH),
  length: u16(0x60),
  pageType: u8(0x62),
  imiPage: u8(0x63),
  vmpl1Permissions: u8(0x65),
  vmpl2Permissions: u8(0x66),
  vmpl3Permissions: u8(0x67),
  gpa: u64(0x68),
});

export interface LaunchedPage {
  readonly type: PageType;
  readonly gpa: number;
  /** Of VMPL 1, 2 and 3. */
  readonly permissions: readonly [number, number, number];
  /** The 4096 bytes, which only NORMAL and VMSA pages measure. */
  readonly plaintext: Uint8Array;
}

const isMeasured = (type: PageType): boolean => type === PAGE_TYPE.NORMAL || type === PAGE_TYPE.VMSA;

const sha384 = (bytes: Uint8Array): Uint8Array => createHash('sha384').update(bytes).digest();

/** The digest after one more 4 KiB page: type, address and permissions are part of it, and so is the order of the pages. */
export function extendSnpDigest(digest: Uint8Array, { type, gpa, permissions, plaintext }: LaunchedPage): Uint8Array {
  const info = new Uint8Array(PAGE_INFO.size);
  PAGE_INFO.digestCur.set(info, digest);
  if (isMeasured(type)) PAGE_INFO.contents.set(info, sha384(plaintext));
  PAGE_INFO.length.set(info, PAGE_INFO.size);
  PAGE_INFO.pageType.set(info, type);
  PAGE_INFO.vmpl1Permissions.set(info, permissions[0]);
  PAGE_INFO.vmpl2Permissions.set(info, permissions[1]);
  PAGE_INFO.vmpl3Permissions.set(info, permissions[2]);
  PAGE_INFO.gpa.set(info, BigInt(gpa));
  return sha384(info);
}
