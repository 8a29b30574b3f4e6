import { type ActiveGuestCall, activeGuestCommand, type Command, input } from '../command.js';
import { DBG } from '../command-buffers.js';
import type { GuestStateKind } from '../guest-context.js';
import { BLOCK_SIZE, type EncryptionKey } from '../memory-encryption.js';
import { hasPolicy, POLICY } from '../policy.js';
import { STATUS, type Status } from '../status.js';

/** DBG_DECRYPT and DBG_ENCRYPT (sev-firmware.md 2.8), refused to guests with NODBG. */

const states: readonly GuestStateKind[] = ['launch-update', 'launch-secret', 'running', 'send-update', 'receive-update'];

/** Copies memory as seen through one key to memory as seen through another. */
function copy(
  { firmware, guest, buffer }: ActiveGuestCall<GuestStateKind>,
  from: EncryptionKey | null,
  to: EncryptionKey | null,
): Status {
  const length = DBG.length.get(buffer);
  const source = DBG.srcPaddr.get(buffer);
  const destination = DBG.dstPaddr.get(buffer);
  if (length === 0 || length % BLOCK_SIZE !== 0) return STATUS.INVALID_LENGTH;
  if (source % BLOCK_SIZE !== 0 || destination % BLOCK_SIZE !== 0) return STATUS.INVALID_ADDRESS;
  const status = firmware.memory.checkWrite([destination, length]);
  if (status !== STATUS.SUCCESS) return status;
  if (hasPolicy(guest.policy, POLICY.NODBG)) return STATUS.POLICY_FAILURE;
  const bytes = firmware.memory.read(source, length, from);
  if (bytes === null) return STATUS.INVALID_ADDRESS;
  // A copy: source and destination may be in one page, which is looked at in two ways.
  firmware.memory.write(destination, Uint8Array.from(bytes), to);
  firmware.charge('psp_kib_encrypted', length / 1024);
  return STATUS.SUCCESS;
}

const dbgDecrypt = activeGuestCommand({
  name: 'DBG_DECRYPT',
  states,
  buffer: input(DBG),
  run: (call) => copy(call, call.key, null),
});
const dbgEncrypt = activeGuestCommand({
  name: 'DBG_ENCRYPT',
  states,
  buffer: input(DBG),
  run: (call) => copy(call, null, call.key),
});

export const debugCommands: readonly Command[] = [dbgDecrypt, dbgEncrypt];
