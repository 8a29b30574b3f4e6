import { type Command, guestCommand, initialisedCommand, input, inputOutput } from '../command.js';
import { GUEST_HANDLE, RECEIVE_START } from '../command-buffers.js';
import { STATUS } from '../status.js';
import { acceptSession, checkGuestRequest, createGuest, hasSessionLengths } from './new-guest.js';

/** RECEIVE_START and RECEIVE_FINISH (sev-firmware.md 2.7). The packets between them are in `packets.ts`. */

/** Migration does not carry a launch digest: a received guest reports zeros (not verified). */
const NO_DIGEST = new Uint8Array(32);

const receiveStart = initialisedCommand({
  name: 'RECEIVE_START',
  states: ['init', 'working'],
  buffer: inputOutput(RECEIVE_START),
  run: (firmware, platform, buffer) => {
    const request = { policy: RECEIVE_START.policy.get(buffer), sharedWith: RECEIVE_START.handle.get(buffer) };
    const session = {
      policy: request.policy,
      certPaddr: RECEIVE_START.pdhCertPaddr.get(buffer),
      certLength: RECEIVE_START.pdhCertLength.get(buffer),
      sessionPaddr: RECEIVE_START.sessionPaddr.get(buffer),
      sessionLength: RECEIVE_START.sessionLength.get(buffer),
    };
    // Unlike LAUNCH_START, which may do without a session, before anything else.
    if (!hasSessionLengths(session)) return STATUS.INVALID_LENGTH;
    const status = checkGuestRequest(firmware, platform, request);
    if (status !== STATUS.SUCCESS) return status;
    const transport = acceptSession(firmware, platform, session);
    if (typeof transport === 'number') return transport;
    const guest = createGuest(firmware, platform, request, { kind: 'receive-update', transport });
    if (guest === null) return STATUS.RESOURCE_LIMIT;
    RECEIVE_START.handle.set(buffer, guest.handle);
    return STATUS.SUCCESS;
  },
});

const receiveFinish = guestCommand({
  name: 'RECEIVE_FINISH',
  states: ['receive-update'],
  buffer: input(GUEST_HANDLE),
  run: ({ guest }) => {
    guest.state = { kind: 'running', digest: NO_DIGEST };
    return STATUS.SUCCESS;
  },
});

export const receiveCommands: readonly Command[] = [receiveStart, receiveFinish];
