import { createHash, type KeyObject } from 'node:crypto';
import { type AmdCertificate, createAmdCertificate, endorse, parseAmdCertificate } from './amd-certificate.js';
import { USAGE } from './certificates.js';
import { createFirmwareImage } from './firmware-image.js';
import type { FirmwareVersion } from './launch-digest.js';
import type { PublicKey } from './p384.js';
import { loadArk, loadAsk } from './simulation-keys.js';
import { authorityCertificate, type ReportKeySubject, reportKeyCertificate } from './snp/x509.js';

/**
 * AMD's key distribution service for the simulated root: what a real operator downloads from AMD, and what the
 * secure processor itself does not have.
 */
export interface KeyDistribution {
  /** ARK certificate, self-signed, 1600 bytes. */
  ark(): Uint8Array;
  /** ASK certificate, signed by the ARK, 1600 bytes. */
  ask(): Uint8Array;
  /** The public part of the ARK, as every simulated chip knows it. */
  root(): AmdCertificate;
  /** The bundle that SEND_START takes: ASK, then ARK. */
  bundle(): Uint8Array;
  /** ARK and ASK as X.509 certificates (DER), as SEV-SNP uses them. */
  x509Chain(): { readonly ark: Uint8Array; readonly ask: Uint8Array };
  /** The X.509 certificate (DER) of a key that signs reports. */
  certifyReportKey(subject: ReportKeySubject, key: PublicKey, tcb: bigint): Uint8Array;
  /** An image for DOWNLOAD_FIRMWARE. */
  firmwareImage(version: FirmwareVersion): Uint8Array;
  /** A chip's CEK certificate with the ASK's signature. */
  endorseChip(cek: Uint8Array): Uint8Array;
}

/** Names of the simulated authorities in X.509. One ASK certifies both VCEKs and VLEKs. */
const ARK_NAME = 'ARK-Milan';
const ASK_NAME = 'SEV-Milan';

const keyId = (name: string): Uint8Array => createHash('sha256').update(`simulated AMD ${name}`).digest().subarray(0, 16);

/** Keys and certificates are made when first asked for. */
export function createKeyDistribution(): KeyDistribution {
  const arkId = keyId('ARK');
  let keys: { readonly ark: KeyObject; readonly ask: KeyObject } | null = null;
  let root: AmdCertificate | null = null;
  let x509: { readonly ark: Uint8Array; readonly ask: Uint8Array } | null = null;
  let certificates: { readonly ark: Uint8Array; readonly ask: Uint8Array } | null = null;
  /** The chip that was endorsed last: every migration asks, and the signature, which is always the same, takes milliseconds. */
  let chip: { readonly cek: Uint8Array; readonly endorsed: Uint8Array } | null = null;

  function load(): { readonly ark: KeyObject; readonly ask: KeyObject } {
    keys ??= { ark: loadArk(), ask: loadAsk() };
    return keys;
  }

  function make(): { readonly ark: Uint8Array; readonly ask: Uint8Array } {
    const { ark, ask } = load();
    certificates ??= {
      ark: createAmdCertificate({ usage: USAGE.ARK, keyId: arkId, certifyingId: arkId }, ark, ark),
      ask: createAmdCertificate({ usage: USAGE.ASK, keyId: keyId('ASK'), certifyingId: arkId }, ask, ark),
    };
    return certificates;
  }

  return {
    ark: () => make().ark,
    ask: () => make().ask,
    root: () => {
      root ??= parseAmdCertificate(make().ark, USAGE.ARK);
      if (root === null) throw new Error('the simulated ARK does not parse');
      return root;
    },
    bundle: () => Buffer.concat([make().ask, make().ark]),
    x509Chain: () => {
      const { ark, ask } = load();
      x509 ??= {
        ark: authorityCertificate(ARK_NAME, ark, ARK_NAME, ark),
        ask: authorityCertificate(ASK_NAME, ask, ARK_NAME, ark),
      };
      return x509;
    },
    certifyReportKey: (subject, key, tcb) => reportKeyCertificate(subject, key, tcb, ASK_NAME, load().ask),
    firmwareImage: (version) => createFirmwareImage(version, load().ark),
    endorseChip: (cek) => {
      if (chip === null || Buffer.compare(chip.cek, cek) !== 0)
        chip = { cek: Uint8Array.from(cek), endorsed: endorse(cek, load().ask) };
      return Uint8Array.from(chip.endorsed);
    },
  };
}
