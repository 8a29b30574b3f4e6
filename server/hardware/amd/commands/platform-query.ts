import { type Command, initialisedCommand, inputOutput, lengthQuery, output, platformCommand } from '../command.js';
import { GET_ID, PLATFORM_STATUS } from '../command-buffers.js';
import { PLATFORM_STATE_NUMBER } from '../platform-state.js';
import { STATUS } from '../status.js';

/** PLATFORM_STATUS, GET_ID, DF_FLUSH and NOP (sev-firmware.md 2.4). */

const platformStatus = platformCommand({
  name: 'PLATFORM_STATUS',
  states: ['uninit', 'init', 'working'],
  buffer: output(PLATFORM_STATUS),
  run: ({ platform, version }, buffer) => {
    const initialised = platform.kind === 'uninit' ? null : platform;
    buffer.fill(0);
    PLATFORM_STATUS.apiMajor.set(buffer, version.major);
    PLATFORM_STATUS.apiMinor.set(buffer, version.minor);
    PLATFORM_STATUS.build.set(buffer, version.build);
    PLATFORM_STATUS.state.set(buffer, PLATFORM_STATE_NUMBER[platform.kind]);
    PLATFORM_STATUS.owner.set(buffer, initialised?.identity.owner.kind === 'external' ? 1 : 0);
    PLATFORM_STATUS.config.set(buffer, initialised?.es === true ? 1 : 0);
    PLATFORM_STATUS.guestCount.set(buffer, initialised?.guests.size ?? 0);
    return STATUS.SUCCESS;
  },
});

const getId = platformCommand({
  name: 'GET_ID',
  states: ['uninit', 'init', 'working'],
  buffer: inputOutput(GET_ID),
  run: ({ memory, chipId }, buffer) => {
    if (lengthQuery(buffer, GET_ID.idLength, chipId.length)) return STATUS.INVALID_LENGTH;
    const address = GET_ID.idPaddr.get(buffer);
    return address % 8 === 0 ? memory.write(address, chipId, null) : STATUS.INVALID_ADDRESS;
  },
});

const dfFlush = initialisedCommand({
  name: 'DF_FLUSH',
  states: ['init', 'working'],
  buffer: null,
  run: ({ asidKeys }) => (asidKeys.flushDataFabric() === 'flushed' ? STATUS.SUCCESS : STATUS.WBINVD_REQUIRED),
});

const nop = platformCommand({ name: 'NOP', states: ['uninit', 'init', 'working'], buffer: null, run: () => STATUS.SUCCESS });

export const platformQueryCommands: readonly Command[] = [platformStatus, getId, dfFlush, nop];
