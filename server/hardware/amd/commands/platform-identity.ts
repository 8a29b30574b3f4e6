import { CHAIN_LENGTH, isSignedBy, parseCertificate, SEV_CERTIFICATE, USAGE, withoutSignatures } from '../certificates.js';
import { type Command, initialisedCommand, input, inputOutput, lengthQuery } from '../command.js';
import { PDH_CERT_EXPORT, PEK_CERT_IMPORT, PEK_CSR } from '../command-buffers.js';
import type { Firmware } from '../firmware.js';
import type { PlatformIdentity } from '../identity.js';
import type { InitialisedPlatform } from '../platform-state.js';
import { STATUS, type Status } from '../status.js';

/** PEK_GEN, PDH_GEN, PEK_CSR, PEK_CERT_IMPORT and PDH_CERT_EXPORT (sev-firmware.md 2.4). */

/** Puts a new identity in force and in the store. */
function adopt({ store }: Firmware, platform: InitialisedPlatform, identity: PlatformIdentity): Status {
  platform.identity = identity;
  store.save(identity);
  return STATUS.SUCCESS;
}

const pekGen = initialisedCommand({
  name: 'PEK_GEN',
  states: ['init'],
  buffer: null,
  run: (firmware, platform) => adopt(firmware, platform, firmware.identities.create()),
});

/** A session blob that was made for the old PDH is useless afterwards. */
const pdhGen = initialisedCommand({
  name: 'PDH_GEN',
  states: ['init', 'working'],
  buffer: null,
  run: (firmware, platform) => adopt(firmware, platform, firmware.identities.withNewPdh(platform.identity)),
});

const pekCsr = initialisedCommand({
  name: 'PEK_CSR',
  states: ['init', 'working'],
  buffer: inputOutput(PEK_CSR),
  run: ({ memory }, { identity }, buffer) => {
    if (lengthQuery(buffer, PEK_CSR.csrLength, SEV_CERTIFICATE.size)) return STATUS.INVALID_LENGTH;
    const request = withoutSignatures(identity.pek.certificate());
    return memory.write(PEK_CSR.csrPaddr.get(buffer), request, null);
  },
});

/** An externally owned platform must be reset (PLATFORM_RESET) or given a new PEK (PEK_GEN) before it changes owners. */
const pekCertImport = initialisedCommand({
  name: 'PEK_CERT_IMPORT',
  states: ['init'],
  buffer: input(PEK_CERT_IMPORT),
  run: (firmware, platform, buffer) => {
    const { memory, identities } = firmware;
    const { identity } = platform;
    if (identity.owner.kind === 'external') return STATUS.ALREADY_OWNED;
    const pekLength = PEK_CERT_IMPORT.pekCertLength.get(buffer);
    const ocaLength = PEK_CERT_IMPORT.ocaCertLength.get(buffer);
    if (pekLength !== SEV_CERTIFICATE.size || ocaLength !== SEV_CERTIFICATE.size) return STATUS.INVALID_LENGTH;
    const pekBytes = memory.read(PEK_CERT_IMPORT.pekCertPaddr.get(buffer), pekLength, null);
    const ocaBytes = memory.read(PEK_CERT_IMPORT.ocaCertPaddr.get(buffer), ocaLength, null);
    if (pekBytes === null || ocaBytes === null) return STATUS.INVALID_ADDRESS;
    const oca = parseCertificate(ocaBytes, USAGE.OCA);
    if (oca === null || !isSignedBy(oca, oca)) return STATUS.INVALID_CERTIFICATE;
    const pek = parseCertificate(pekBytes, USAGE.PEK);
    const request = withoutSignatures(identity.pek.certificate());
    // One comparison for the key and everything else that the request says about it.
    if (pek === null || !Buffer.from(withoutSignatures(pekBytes)).equals(request)) return STATUS.INVALID_CERTIFICATE;
    if (!isSignedBy(pek, oca)) return STATUS.INVALID_CERTIFICATE;
    return adopt(
      firmware,
      platform,
      identities.withExternalOwner(Uint8Array.from(ocaBytes), Uint8Array.from(pekBytes), identity.pek),
    );
  },
});

const pdhCertExport = initialisedCommand({
  name: 'PDH_CERT_EXPORT',
  states: ['init', 'working'],
  buffer: inputOutput(PDH_CERT_EXPORT),
  run: ({ memory, cek }, { identity: { owner, pek, pdh } }, buffer) => {
    const pdhIsShort = lengthQuery(buffer, PDH_CERT_EXPORT.pdhCertLength, SEV_CERTIFICATE.size);
    const chainIsShort = lengthQuery(buffer, PDH_CERT_EXPORT.certsLength, CHAIN_LENGTH);
    if (pdhIsShort || chainIsShort) return STATUS.INVALID_LENGTH;
    const pdhPaddr = PDH_CERT_EXPORT.pdhCertPaddr.get(buffer);
    const certsPaddr = PDH_CERT_EXPORT.certsPaddr.get(buffer);
    const status = memory.checkWrite([pdhPaddr, SEV_CERTIFICATE.size], [certsPaddr, CHAIN_LENGTH]);
    if (status !== STATUS.SUCCESS) return status;
    memory.write(pdhPaddr, pdh.certificate(), null);
    memory.write(certsPaddr, Buffer.concat([pek.certificate(), owner.certificate(), cek.certificate()]), null);
    return STATUS.SUCCESS;
  },
});

export const platformIdentityCommands: readonly Command[] = [pekGen, pdhGen, pekCsr, pekCertImport, pdhCertExport];
