import type { CommandName } from '../../../hardware/amd/command-ids.js';
import { STATUS, type Status, statusName } from '../../../hardware/amd/status.js';
import { Failure } from '../../failure.js';

/** What is said of a firmware status other than SUCCESS. */
export const firmwareFailure = (command: CommandName, status: Status, kernelRef: string): Failure =>
  new Failure('EIO', `FIRMWARE_${statusName(status)}`, kernelRef, { command }, status);

/** The failure of an initialisation as `/dev/sev` tells it: INVALID_PLATFORM_STATE, whatever the firmware said. */
export const notInitialised = ({ errno, reason, kernelRef, details }: Failure): Failure =>
  new Failure(errno, reason, kernelRef, details, STATUS.INVALID_PLATFORM_STATE);
