import { PAGE_SIZE } from '../../units.js';
import { type ActiveGuestCall, activeGuestCommand, type Command, input, inputOutput, lengthQuery } from '../command.js';
import { PACKET } from '../command-buffers.js';
import { hasCBit } from '../firmware-memory.js';
import type { GuestContext } from '../guest-context.js';
import { BLOCK_SIZE } from '../memory-encryption.js';
import {
  MAC_CONTEXT,
  openPacket,
  PACKET_COMPRESSED,
  PACKET_HEADER,
  type PacketContext,
  sealPacket,
  successorIv,
} from '../packet.js';
import { hasPolicy, POLICY } from '../policy.js';
import { STATUS, type Status } from '../status.js';

/**
 * SEND_UPDATE_DATA, SEND_UPDATE_VMSA, RECEIVE_UPDATE_DATA and RECEIVE_UPDATE_VMSA (sev-firmware.md 2.7): guest memory in
 * transport. A packet is bound to its session and to nothing else, so that one can be repeated, dropped, reordered and
 * put anywhere in the guest's memory, here as on real parts.
 *
 * A packet's initialisation vector is the firmware's to choose, and the other side takes any. Here that of a session's first
 * packet is random, and each other one is the counter block behind the packet before: no counter block is used twice under
 * one key. How real firmware chooses them is not published (not verified).
 */

type PageContext = Exclude<PacketContext, typeof MAC_CONTEXT.LAUNCH_SECRET>;

const IV_LENGTH = 16;

/** What the range of guest memory must be: whole blocks, or for a VMSA one page of an SEV-ES guest. */
function checkLength(guest: GuestContext, context: PageContext, buffer: Uint8Array): Status {
  const length = PACKET.guestLength.get(buffer);
  if (context === MAC_CONTEXT.UPDATE_DATA)
    return length === 0 || length % BLOCK_SIZE !== 0 ? STATUS.INVALID_LENGTH : STATUS.SUCCESS;
  if (!hasPolicy(guest.policy, POLICY.ES)) return STATUS.INVALID_CONFIG;
  return length === PAGE_SIZE ? STATUS.SUCCESS : STATUS.INVALID_LENGTH;
}

/** Guest memory is named with the C-bit in these commands; the status without it is not verified. */
function isGuestRange(address: number, context: PageContext): boolean {
  return hasCBit(address) && address % (context === MAC_CONTEXT.UPDATE_DATA ? BLOCK_SIZE : PAGE_SIZE) === 0;
}

function send({ firmware, guest, state, key, buffer }: ActiveGuestCall<'send-update'>, context: PageContext): Status {
  const { memory } = firmware;
  const guestLength = PACKET.guestLength.get(buffer);
  const headerIsShort = lengthQuery(buffer, PACKET.hdrLength, PACKET_HEADER.size);
  const dataIsShort = lengthQuery(buffer, PACKET.transLength, guestLength);
  if (headerIsShort || dataIsShort) return STATUS.INVALID_LENGTH;
  const status = checkLength(guest, context, buffer);
  if (status !== STATUS.SUCCESS) return status;
  const guestPaddr = PACKET.guestPaddr.get(buffer);
  const hdrPaddr = PACKET.hdrPaddr.get(buffer);
  const transPaddr = PACKET.transPaddr.get(buffer);
  if (!isGuestRange(guestPaddr, context)) return STATUS.INVALID_ADDRESS;
  const writable = memory.checkWrite([hdrPaddr, PACKET_HEADER.size], [transPaddr, guestLength]);
  if (writable !== STATUS.SUCCESS) return writable;
  const plaintext = memory.read(guestPaddr, guestLength, key);
  if (plaintext === null) return STATUS.INVALID_ADDRESS;
  const iv = successorIv(state.transport) ?? firmware.random.bytes(IV_LENGTH);
  const packet = sealPacket(state.transport, { context }, iv, plaintext);
  memory.writeAllowed(hdrPaddr, packet.header, null);
  memory.writeAllowed(transPaddr, packet.data, null);
  firmware.charge('psp_kib_encrypted', guestLength / 1024);
  firmware.charge('psp_kib_digested', guestLength / 1024);
  return STATUS.SUCCESS;
}

function receive({ firmware, guest, state, key, buffer }: ActiveGuestCall<'receive-update'>, context: PageContext): Status {
  const { memory } = firmware;
  const guestLength = PACKET.guestLength.get(buffer);
  const transLength = PACKET.transLength.get(buffer);
  const status = checkLength(guest, context, buffer);
  if (status !== STATUS.SUCCESS) return status;
  if (PACKET.hdrLength.get(buffer) !== PACKET_HEADER.size || transLength !== guestLength) return STATUS.INVALID_LENGTH;
  const guestPaddr = PACKET.guestPaddr.get(buffer);
  const header = memory.read(PACKET.hdrPaddr.get(buffer), PACKET_HEADER.size, null);
  const data = memory.read(PACKET.transPaddr.get(buffer), transLength, null);
  if (header === null || data === null) return STATUS.INVALID_ADDRESS;
  if (!isGuestRange(guestPaddr, context)) return STATUS.INVALID_ADDRESS;
  const writable = memory.checkWrite([guestPaddr, guestLength]);
  if (writable !== STATUS.SUCCESS) return writable;
  const plaintext = openPacket(state.transport, { context }, { header, data }, guestLength);
  if (plaintext === null) return STATUS.BAD_MEASUREMENT;
  if ((PACKET_HEADER.flags.get(header) & PACKET_COMPRESSED) !== 0) return STATUS.UNSUPPORTED;
  memory.writeAllowed(guestPaddr, plaintext, key);
  const saveArea = context === MAC_CONTEXT.UPDATE_VMSA ? memory.frameAt(guestPaddr) : null;
  if (saveArea !== null) firmware.saveAreas.record(saveArea, key);
  firmware.charge('psp_kib_encrypted', guestLength / 1024);
  firmware.charge('psp_kib_digested', guestLength / 1024);
  return STATUS.SUCCESS;
}

export const packetCommands: readonly Command[] = [
  activeGuestCommand({
    name: 'SEND_UPDATE_DATA',
    states: ['send-update'],
    buffer: inputOutput(PACKET),
    run: (call) => send(call, MAC_CONTEXT.UPDATE_DATA),
  }),
  activeGuestCommand({
    name: 'SEND_UPDATE_VMSA',
    states: ['send-update'],
    buffer: inputOutput(PACKET),
    run: (call) => send(call, MAC_CONTEXT.UPDATE_VMSA),
  }),
  activeGuestCommand({
    name: 'RECEIVE_UPDATE_DATA',
    states: ['receive-update'],
    buffer: input(PACKET),
    run: (call) => receive(call, MAC_CONTEXT.UPDATE_DATA),
  }),
  activeGuestCommand({
    name: 'RECEIVE_UPDATE_VMSA',
    states: ['receive-update'],
    buffer: input(PACKET),
    run: (call) => receive(call, MAC_CONTEXT.UPDATE_VMSA),
  }),
];
