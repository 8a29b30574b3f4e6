import {
  ATTESTATION,
  DBG,
  GET_ID,
  LAUNCH_MEASURE,
  LAUNCH_UPDATE,
  PACKET,
  PDH_CERT_EXPORT,
  PEK_CSR,
  SEND_START,
} from '../../../hardware/amd/command-buffers.js';
import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { type Range, withoutCBit } from '../../../hardware/amd/firmware-memory.js';

/** `sev_cmd_buf_writable`: commands of the SEV API that write into their own buffer. */
const WRITES_ITS_BUFFER: ReadonlySet<CommandName> = new Set<CommandName>([
  'PLATFORM_STATUS',
  'GUEST_STATUS',
  'LAUNCH_START',
  'RECEIVE_START',
  'LAUNCH_MEASURE',
  'SEND_START',
  'SEND_UPDATE_DATA',
  'SEND_UPDATE_VMSA',
  'PEK_CSR',
  'PDH_CERT_EXPORT',
  'GET_ID',
  'ATTESTATION',
]);

type Outputs = (buffer: Uint8Array) => readonly Range[];

const launchUpdate: Outputs = (buffer) => [[LAUNCH_UPDATE.paddr.get(buffer), LAUNCH_UPDATE.length.get(buffer)]];
const debug: Outputs = (buffer) => [[DBG.dstPaddr.get(buffer), DBG.length.get(buffer)]];
const toGuest: Outputs = (buffer) => [[PACKET.guestPaddr.get(buffer), PACKET.guestLength.get(buffer)]];
const packet: Outputs = (buffer) => [
  [PACKET.hdrPaddr.get(buffer), PACKET.hdrLength.get(buffer)],
  [PACKET.transPaddr.get(buffer), PACKET.transLength.get(buffer)],
];

/** `snp_populate_cmd_buf_desc_list`: what a command of the SEV API writes elsewhere, guest memory among it. */
const OUTPUTS: ReadonlyMap<CommandName, Outputs> = new Map<CommandName, Outputs>([
  ['PEK_CSR', (buffer) => [[PEK_CSR.csrPaddr.get(buffer), PEK_CSR.csrLength.get(buffer)]]],
  [
    'PDH_CERT_EXPORT',
    (buffer) => [
      [PDH_CERT_EXPORT.pdhCertPaddr.get(buffer), PDH_CERT_EXPORT.pdhCertLength.get(buffer)],
      [PDH_CERT_EXPORT.certsPaddr.get(buffer), PDH_CERT_EXPORT.certsLength.get(buffer)],
    ],
  ],
  ['GET_ID', (buffer) => [[GET_ID.idPaddr.get(buffer), GET_ID.idLength.get(buffer)]]],
  ['LAUNCH_UPDATE_DATA', launchUpdate],
  ['LAUNCH_UPDATE_VMSA', launchUpdate],
  ['LAUNCH_MEASURE', (buffer) => [[LAUNCH_MEASURE.measurePaddr.get(buffer), LAUNCH_MEASURE.measureLength.get(buffer)]]],
  ['LAUNCH_SECRET', toGuest],
  ['DBG_DECRYPT', debug],
  ['DBG_ENCRYPT', debug],
  ['ATTESTATION', (buffer) => [[ATTESTATION.paddr.get(buffer), ATTESTATION.length.get(buffer)]]],
  ['SEND_START', (buffer) => [[SEND_START.sessionPaddr.get(buffer), SEND_START.sessionLength.get(buffer)]]],
  ['SEND_UPDATE_DATA', packet],
  ['SEND_UPDATE_VMSA', packet],
  ['RECEIVE_UPDATE_DATA', toGuest],
  ['RECEIVE_UPDATE_VMSA', toGuest],
]);

/**
 * The physical memory that a command of the SEV API writes, without C-bits: it has to be the firmware's while SEV-SNP is
 * initialised.
 * @param address of the command's buffer
 */
export const firmwareWrites = (name: CommandName, buffer: Uint8Array, address: number): readonly Range[] => {
  const own: readonly Range[] = WRITES_ITS_BUFFER.has(name) ? [[address, buffer.length]] : [];
  return [...own, ...(OUTPUTS.get(name)?.(buffer) ?? [])]
    .filter(([start, length]) => start !== 0 && length !== 0)
    .map(([start, length]) => [withoutCBit(start), length]);
};
