import { PAGE_SIZE } from '../../units.js';
import {
  type ActiveGuestCall,
  activeGuestCommand,
  type Command,
  guestCommand,
  initialisedCommand,
  input,
  inputOutput,
  lengthQuery,
} from '../command.js';
import { GUEST_HANDLE, LAUNCH_MEASURE, LAUNCH_START, LAUNCH_UPDATE } from '../command-buffers.js';
import { LaunchDigest, launchMeasurement } from '../launch-digest.js';
import { BLOCK_SIZE } from '../memory-encryption.js';
import { hasPolicy, POLICY } from '../policy.js';
import { createTransportKeys } from '../session.js';
import { STATUS, type Status } from '../status.js';
import { acceptSession, checkGuestRequest, createGuest } from './new-guest.js';

/** LAUNCH_START, LAUNCH_UPDATE_DATA, LAUNCH_UPDATE_VMSA, LAUNCH_MEASURE and LAUNCH_FINISH (sev-firmware.md 2.6). */

/** MEASURE and MNONCE. */
const MEASUREMENT_LENGTH = 48;
const MNONCE_LENGTH = 16;

const launchStart = initialisedCommand({
  name: 'LAUNCH_START',
  states: ['init', 'working'],
  buffer: inputOutput(LAUNCH_START),
  run: (firmware, platform, buffer) => {
    const request = { policy: LAUNCH_START.policy.get(buffer), sharedWith: LAUNCH_START.handle.get(buffer) };
    const status = checkGuestRequest(firmware, platform, request);
    if (status !== STATUS.SUCCESS) return status;
    const certPaddr = LAUNCH_START.dhCertPaddr.get(buffer);
    // Without an owner's certificate there is no session, and nobody but the firmware ever knows the transport keys.
    const transport =
      certPaddr === 0
        ? createTransportKeys(firmware.random)
        : acceptSession(firmware, platform, {
            policy: request.policy,
            certPaddr,
            certLength: LAUNCH_START.dhCertLength.get(buffer),
            sessionPaddr: LAUNCH_START.sessionPaddr.get(buffer),
            sessionLength: LAUNCH_START.sessionLength.get(buffer),
          });
    if (typeof transport === 'number') return transport;
    const guest = createGuest(firmware, platform, request, { kind: 'launch-update', transport, digest: new LaunchDigest() });
    if (guest === null) return STATUS.RESOURCE_LIMIT;
    LAUNCH_START.handle.set(buffer, guest.handle);
    return STATUS.SUCCESS;
  },
});

/** Measures a range and encrypts it in place under the guest's key. */
function measureAndEncrypt({ firmware, state, key, buffer }: ActiveGuestCall<'launch-update'>): Status {
  const length = LAUNCH_UPDATE.length.get(buffer);
  const status = firmware.memory.encryptInPlace(LAUNCH_UPDATE.paddr.get(buffer), length, key, (plaintext) =>
    state.digest.update(plaintext),
  );
  if (status !== STATUS.SUCCESS) return status;
  firmware.charge('psp_kib_digested', length / 1024);
  firmware.charge('psp_kib_encrypted', length / 1024);
  return STATUS.SUCCESS;
}

const launchUpdateData = activeGuestCommand({
  name: 'LAUNCH_UPDATE_DATA',
  states: ['launch-update'],
  buffer: input(LAUNCH_UPDATE),
  run: (call) => {
    const length = LAUNCH_UPDATE.length.get(call.buffer);
    if (length === 0 || length % BLOCK_SIZE !== 0) return STATUS.INVALID_LENGTH;
    return LAUNCH_UPDATE.paddr.get(call.buffer) % BLOCK_SIZE === 0 ? measureAndEncrypt(call) : STATUS.INVALID_ADDRESS;
  },
});

/** For SEV-ES guests only; that others get INVALID_CONFIG is not verified. */
const launchUpdateVmsa = activeGuestCommand({
  name: 'LAUNCH_UPDATE_VMSA',
  states: ['launch-update'],
  buffer: input(LAUNCH_UPDATE),
  run: (call) => {
    if (!hasPolicy(call.guest.policy, POLICY.ES)) return STATUS.INVALID_CONFIG;
    if (LAUNCH_UPDATE.length.get(call.buffer) !== PAGE_SIZE) return STATUS.INVALID_LENGTH;
    const { memory, saveAreas } = call.firmware;
    const frame = memory.frameAt(LAUNCH_UPDATE.paddr.get(call.buffer));
    if (frame === null) return STATUS.INVALID_ADDRESS;
    const status = measureAndEncrypt(call);
    if (status === STATUS.SUCCESS) saveAreas.record(frame, call.key);
    return status;
  },
});

const launchMeasure = guestCommand({
  name: 'LAUNCH_MEASURE',
  states: ['launch-update'],
  buffer: inputOutput(LAUNCH_MEASURE),
  run: ({ firmware, guest, state, buffer }) => {
    if (lengthQuery(buffer, LAUNCH_MEASURE.measureLength, MEASUREMENT_LENGTH)) return STATUS.INVALID_LENGTH;
    const address = LAUNCH_MEASURE.measurePaddr.get(buffer);
    const writable = firmware.memory.checkWrite([address, MEASUREMENT_LENGTH]);
    if (writable !== STATUS.SUCCESS) return writable;
    const { transport } = state;
    const digest = state.digest.value();
    const mnonce = firmware.random.bytes(MNONCE_LENGTH);
    const measure = launchMeasurement(transport.tik, { firmware: firmware.version, policy: guest.policy, digest, mnonce });
    firmware.memory.write(address, Buffer.concat([measure, mnonce]), null);
    guest.state = { kind: 'launch-secret', transport, digest, measure };
    return STATUS.SUCCESS;
  },
});

/** Legal also before LAUNCH_MEASURE, as the kernel's selftest has it (not verified on hardware). */
const launchFinish = guestCommand({
  name: 'LAUNCH_FINISH',
  states: ['launch-update', 'launch-secret'],
  buffer: input(GUEST_HANDLE),
  run: ({ guest, state }) => {
    guest.state = { kind: 'running', digest: state.kind === 'launch-update' ? state.digest.value() : state.digest };
    return STATUS.SUCCESS;
  },
});

export const launchCommands: readonly Command[] = [launchStart, launchUpdateData, launchUpdateVmsa, launchMeasure, launchFinish];
