import { type Command, input, platformCommand } from '../command.js';
import { INIT, INIT_EX, INIT_OPTION_ES } from '../command-buffers.js';
import type { Firmware } from '../firmware.js';
import type { PlatformIdentity } from '../identity.js';
import { createBufferStore, NV_LENGTH, type PersistentStore } from '../persistent-store.js';
import { STATUS, type Status } from '../status.js';

/** INIT, INIT_EX, SHUTDOWN and PLATFORM_RESET (sev-firmware.md 1.1, 2.4). */

/** Smallest trusted memory region for SEV-ES, and its alignment; while SEV-SNP is initialised it must be a large page. */
const TMR_LENGTH = 0x10_0000;
const SNP_TMR_LENGTH = 0x20_0000;

interface TrustedMemoryRegion {
  readonly paddr: number;
  readonly length: number;
}

/**
 * The checks that INIT and INIT_EX share: options, then the trusted memory region if SEV-ES is asked for. Their statuses are
 * not verified, nor whether its pages must be the firmware's while SEV-SNP is initialised, as Linux makes them: not checked.
 */
function checkOptions(firmware: Firmware, options: number, tmr: TrustedMemoryRegion): Status {
  if ((options & ~INIT_OPTION_ES) !== 0) return STATUS.INVALID_PARAM;
  if ((options & INIT_OPTION_ES) === 0) return STATUS.SUCCESS;
  if (firmware.asidKeys.range.minSev <= 1) return STATUS.INVALID_CONFIG;
  const least = firmware.snp.kind === 'init' ? SNP_TMR_LENGTH : TMR_LENGTH;
  if (tmr.length < least) return STATUS.INVALID_LENGTH;
  return tmr.paddr % least === 0 ? STATUS.SUCCESS : STATUS.INVALID_ADDRESS;
}

/** Loads or makes the identity. After SECURE_DATA_INVALID the store is empty, so that a second attempt succeeds. */
function loadIdentity(firmware: Firmware, store: PersistentStore): PlatformIdentity | null {
  const stored = store.load();
  if (stored === 'corrupt') {
    store.erase();
    return null;
  }
  if (stored !== null) return stored;
  const identity = firmware.identities.create();
  store.save(identity);
  return identity;
}

function initialise(firmware: Firmware, options: number, store: PersistentStore): Status {
  const identity = loadIdentity(firmware, store);
  if (identity === null) return STATUS.SECURE_DATA_INVALID;
  firmware.store = store;
  firmware.platform = { kind: 'init', es: (options & INIT_OPTION_ES) !== 0, identity, guests: new Map() };
  firmware.asidKeys.invalidateUnused();
  return STATUS.SUCCESS;
}

const init = platformCommand({
  name: 'INIT',
  states: ['uninit'],
  buffer: input(INIT),
  run: (firmware, buffer) => {
    const options = INIT.options.get(buffer);
    const status = checkOptions(firmware, options, { paddr: INIT.tmrPaddr.get(buffer), length: INIT.tmrLength.get(buffer) });
    return status === STATUS.SUCCESS ? initialise(firmware, options, firmware.flash) : status;
  },
});

const initEx = platformCommand({
  name: 'INIT_EX',
  states: ['uninit'],
  buffer: input(INIT_EX),
  run: (firmware, buffer) => {
    if (INIT_EX.length.get(buffer) !== INIT_EX.size) return STATUS.INVALID_LENGTH;
    const options = INIT_EX.options.get(buffer);
    const status = checkOptions(firmware, options, {
      paddr: INIT_EX.tmrPaddr.get(buffer),
      length: INIT_EX.tmrLength.get(buffer),
    });
    if (status !== STATUS.SUCCESS) return status;
    if (INIT_EX.nvLength.get(buffer) !== NV_LENGTH) return STATUS.INVALID_LENGTH;
    const nvPaddr = INIT_EX.nvPaddr.get(buffer);
    const writable = firmware.memory.checkWrite([nvPaddr, NV_LENGTH]);
    if (writable !== STATUS.SUCCESS) return writable;
    const { memory, chipSecret, identities } = firmware;
    return initialise(firmware, options, createBufferStore(memory, nvPaddr, chipSecret, identities));
  },
});

/** Drops every guest with its keys. Legal in every state; whether it asks for a flush on real parts is not verified. */
const shutdown = platformCommand({
  name: 'SHUTDOWN',
  states: ['uninit', 'init', 'working'],
  buffer: null,
  run: (firmware) => {
    if (firmware.platform.kind === 'uninit') return STATUS.SUCCESS;
    for (const { activation } of firmware.platform.guests.values())
      if (activation !== null) firmware.asidKeys.unload(activation.asid);
    firmware.platform = { kind: 'uninit' };
    firmware.asidKeys.invalidateUnused();
    return STATUS.SUCCESS;
  },
});

const platformReset = platformCommand({
  name: 'PLATFORM_RESET',
  states: ['uninit'],
  buffer: null,
  run: (firmware) => {
    firmware.store.erase();
    return STATUS.SUCCESS;
  },
});

export const platformLifecycleCommands: readonly Command[] = [init, initEx, shutdown, platformReset];
