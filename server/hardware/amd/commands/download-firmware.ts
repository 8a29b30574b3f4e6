import { type Command, input, platformCommand } from '../command.js';
import { DOWNLOAD_FIRMWARE } from '../command-buffers.js';
import { FIRMWARE_IMAGE_LENGTH, verifyFirmwareImage } from '../firmware-image.js';
import { isAtLeast } from '../policy.js';
import { STATUS } from '../status.js';

/**
 * DOWNLOAD_FIRMWARE (sev-firmware.md 1.4, 2.4): replaces the firmware by a newer one, while neither SEV nor SEV-SNP is
 * initialised. The statuses of its errors are not verified.
 */

const IMAGE_ALIGNMENT = 32;

const downloadFirmware = platformCommand({
  name: 'DOWNLOAD_FIRMWARE',
  states: ['uninit'],
  buffer: input(DOWNLOAD_FIRMWARE),
  run: (firmware, buffer) => {
    if (firmware.snp.kind !== 'uninit') return STATUS.INVALID_PLATFORM_STATE;
    if (DOWNLOAD_FIRMWARE.fwLength.get(buffer) !== FIRMWARE_IMAGE_LENGTH) return STATUS.INVALID_LENGTH;
    const address = DOWNLOAD_FIRMWARE.fwPaddr.get(buffer);
    const image = firmware.memory.read(address, FIRMWARE_IMAGE_LENGTH, null);
    if (image === null || address % IMAGE_ALIGNMENT !== 0) return STATUS.INVALID_ADDRESS;
    const version = verifyFirmwareImage(image, firmware.rootKey().publicKey);
    if (version === null) return STATUS.BAD_SIGNATURE;
    if (!isAtLeast(version, firmware.version)) return STATUS.BAD_VERSION;
    firmware.version = version;
    return STATUS.SUCCESS;
  },
});

export const downloadFirmwareCommands: readonly Command[] = [downloadFirmware];
