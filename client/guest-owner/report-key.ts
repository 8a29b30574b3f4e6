import { X509Certificate } from 'node:crypto';
import { AsnConvert } from '@peculiar/asn1-schema';
import { Certificate } from '@peculiar/asn1-x509';

/** What a VCEK or VLEK certificate says beside its key, in extensions of AMD's own (Versioned Chip Endorsement Key Certificate, 3.1). */
export interface ReportKeyExtensions {
  /** Null in a VLEK's. */
  readonly chipId: Uint8Array | null;
  /** The TCB version that the key is derived from, as reports write it. */
  readonly tcb: Uint8Array;
}

const AMD = '1.3.6.1.4.1.3704.1';
const HARDWARE_ID = `${AMD}.4`;
const SPL = { bootLoader: `${AMD}.3.1`, tee: `${AMD}.3.2`, snp: `${AMD}.3.3`, microcode: `${AMD}.3.8`, fmc: `${AMD}.3.9` };
const OCTET_STRING = 4;
const CHIP_ID_LENGTHS: readonly number[] = [64, 8];

/** The value of a short DER INTEGER. */
const integer = (der: Uint8Array | undefined): number => {
  if (der === undefined || der[0] !== 2 || der[1] !== der.length - 2 || der.length > 4)
    throw new RangeError('no security version');
  return der.subarray(2).reduce((value, byte) => value * 256 + byte, 0);
};

/** TCB_VERSION of Milan and Genoa, and the other one of Turin, which has an FMC. */
const tcbOf = (extensions: ReadonlyMap<string, Uint8Array>): Uint8Array => {
  const spl = (name: keyof typeof SPL): number => integer(extensions.get(SPL[name]));
  if (extensions.has(SPL.fmc))
    return Uint8Array.of(spl('fmc'), spl('bootLoader'), spl('tee'), spl('snp'), 0, 0, 0, spl('microcode'));
  return Uint8Array.of(spl('bootLoader'), spl('tee'), 0, 0, 0, 0, spl('snp'), spl('microcode'));
};

/** An identity of 64 bytes, or of 8 on Turin. Newer certificates wrap it into an OCTET STRING. */
const identityOf = (value: Uint8Array): Uint8Array => {
  const isWrapped = value[0] === OCTET_STRING && value[1] === value.length - 2 && CHIP_ID_LENGTHS.includes(value.length - 2);
  return isWrapped ? value.slice(2) : value;
};

/** @throws RangeError if the certificate has no such extensions */
export const reportKeyExtensions = (certificate: X509Certificate): ReportKeyExtensions => {
  const { extensions = [] } = AsnConvert.parse(Uint8Array.from(certificate.raw), Certificate).tbsCertificate;
  const values = new Map([...extensions].map(({ extnID, extnValue }) => [extnID, new Uint8Array(extnValue.buffer)]));
  const hardwareId = values.get(HARDWARE_ID);
  return { chipId: hardwareId === undefined ? null : identityOf(hardwareId), tcb: tcbOf(values) };
};

const PEM_BEGIN = '-----BEGIN CERTIFICATE-----';
const PEM = /^-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/;

const readPem = (texts: readonly string[]): X509Certificate[] =>
  texts.map((text, index) => {
    const which = `certificate ${index + 1} of ${texts.length} (PEM)`;
    const [whole] = PEM.exec(text) ?? [];
    if (whole === undefined) throw new RangeError(`${which} is cut off: it has no end`);
    try {
      return new X509Certificate(whole);
    } catch (error) {
      throw new RangeError(`${which} is no X.509 certificate`, { cause: error });
    }
  });

/** The certificates of a file: PEM, any number of them, or one in DER. @throws RangeError if there is none, or one is damaged */
export const readCertificates = (file: Uint8Array): X509Certificate[] => {
  const [, ...texts] = Buffer.from(file).toString('latin1').split(PEM_BEGIN);
  if (texts.length > 0) return readPem(texts.map((text) => PEM_BEGIN + text));
  try {
    return [new X509Certificate(file)];
  } catch (error) {
    throw new RangeError(`no X.509 certificates, neither PEM nor DER, in ${file.length} bytes`, { cause: error });
  }
};

/** The one certificate of a file. @throws RangeError if there are more, or none */
export const readCertificate = (file: Uint8Array): X509Certificate => {
  const [certificate, ...more] = readCertificates(file);
  if (certificate === undefined || more.length > 0) throw new RangeError(`${more.length + 1} certificates, where one is wanted`);
  return certificate;
};
