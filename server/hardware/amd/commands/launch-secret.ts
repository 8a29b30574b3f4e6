import { activeGuestCommand, type Command, input } from '../command.js';
import { PACKET } from '../command-buffers.js';
import { BLOCK_SIZE } from '../memory-encryption.js';
import { MAC_CONTEXT, openPacket, PACKET_COMPRESSED, PACKET_HEADER } from '../packet.js';
import { STATUS } from '../status.js';

/** LAUNCH_SECRET (sev-firmware.md 2.6): puts a secret of the guest owner, bound to the measurement, into guest memory. */

const SECRET_LENGTH_MAX = 16 * 1024;

const launchSecret = activeGuestCommand({
  name: 'LAUNCH_SECRET',
  states: ['launch-secret'],
  buffer: input(PACKET),
  run: ({ firmware: { memory, charge }, state, key, buffer }) => {
    const guestLength = PACKET.guestLength.get(buffer);
    const transLength = PACKET.transLength.get(buffer);
    if (PACKET.hdrLength.get(buffer) !== PACKET_HEADER.size) return STATUS.INVALID_LENGTH;
    if (guestLength === 0 || guestLength % BLOCK_SIZE !== 0 || guestLength > SECRET_LENGTH_MAX) return STATUS.INVALID_LENGTH;
    if (transLength === 0 || transLength > SECRET_LENGTH_MAX) return STATUS.INVALID_LENGTH;
    const guestPaddr = PACKET.guestPaddr.get(buffer);
    const header = memory.read(PACKET.hdrPaddr.get(buffer), PACKET_HEADER.size, null);
    const data = memory.read(PACKET.transPaddr.get(buffer), transLength, null);
    if (header === null || data === null) return STATUS.INVALID_ADDRESS;
    if (guestPaddr % BLOCK_SIZE !== 0) return STATUS.INVALID_ADDRESS;
    const writable = memory.checkWrite([guestPaddr, guestLength]);
    if (writable !== STATUS.SUCCESS) return writable;
    const secret = openPacket(
      state.transport,
      { context: MAC_CONTEXT.LAUNCH_SECRET, measure: state.measure },
      { header, data },
      guestLength,
    );
    if (secret === null) return STATUS.BAD_MEASUREMENT;
    if ((PACKET_HEADER.flags.get(header) & PACKET_COMPRESSED) !== 0) return STATUS.UNSUPPORTED;
    if (secret.length !== guestLength) return STATUS.INVALID_LENGTH;
    memory.write(guestPaddr, secret, key);
    charge('psp_kib_encrypted', guestLength / 1024);
    return STATUS.SUCCESS;
  },
});

export const launchSecretCommands: readonly Command[] = [launchSecret];
