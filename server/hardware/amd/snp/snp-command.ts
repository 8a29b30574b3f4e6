import type { Hpa } from '../../units.js';
import type { Field, Struct } from '../byte-layout.js';
import { type BufferSpec, type Command, withBuffer } from '../command.js';
import type { CommandName } from '../command-ids.js';
import type { Firmware } from '../firmware.js';
import { STATUS, type Status } from '../status.js';
import type { SnpGuest, SnpGuestStateKind, SnpGuestStateOf } from './snp-guest.js';
import type { SnpInitialised, SnpPlatformStateKind } from './snp-platform.js';

interface SnpPlatformCommandSpec {
  readonly name: CommandName;
  readonly states: readonly SnpPlatformStateKind[];
  readonly buffer: BufferSpec | null;
  run(firmware: Firmware, buffer: Uint8Array): Status;
}

/** A command that is legal in some states of the SNP platform. */
export function snpPlatformCommand({ name, states, buffer, run }: SnpPlatformCommandSpec): Command {
  return {
    name,
    execute: (firmware: Firmware, address: Hpa) =>
      states.includes(firmware.snp.kind)
        ? withBuffer(firmware, address, buffer, (bytes) => run(firmware, bytes))
        : STATUS.INVALID_PLATFORM_STATE,
  };
}

interface SnpCommandSpec {
  readonly name: CommandName;
  readonly buffer: BufferSpec;
  run(firmware: Firmware, platform: SnpInitialised, buffer: Uint8Array): Status;
}

/** A command that needs an initialised SNP platform. */
export function snpCommand({ name, buffer, run }: SnpCommandSpec): Command {
  return {
    name,
    execute: (firmware, address) => {
      const { snp } = firmware;
      if (snp.kind === 'uninit') return STATUS.INVALID_PLATFORM_STATE;
      return withBuffer(firmware, address, buffer, (bytes) => run(firmware, snp, bytes));
    },
  };
}

export interface SnpGuestCall<Kind extends SnpGuestStateKind> {
  readonly firmware: Firmware;
  readonly platform: SnpInitialised;
  readonly guest: SnpGuest;
  readonly state: SnpGuestStateOf<Kind>;
  readonly buffer: Uint8Array;
}

interface SnpGuestCommandSpec<Kind extends SnpGuestStateKind> {
  readonly name: CommandName;
  readonly states: readonly Kind[];
  readonly buffer: BufferSpec<Struct & { readonly gctxPaddr: Field<number> }>;
  run(call: SnpGuestCall<Kind>): Status;
}

/** A command on an SNP guest in one of some states. Which status a page that is no context gets is not verified. */
export function snpGuestCommand<Kind extends SnpGuestStateKind>({
  name,
  states,
  buffer,
  run,
}: SnpGuestCommandSpec<Kind>): Command {
  return snpCommand({
    name,
    buffer,
    run: (firmware, platform, bytes) => {
      const guest = guestAt(firmware, platform, buffer.struct.gctxPaddr.get(bytes));
      if (typeof guest === 'number') return guest;
      const { state } = guest;
      if (!isOneOf(state, states)) return STATUS.INVALID_GUEST_STATE;
      return run({ firmware, platform, guest, state, buffer: bytes });
    },
  });
}

/** The guest whose context stands at an address. */
function guestAt({ memory }: Firmware, { guests }: SnpInitialised, address: number): SnpGuest | Status {
  const frame = memory.frameAt(address);
  if (frame === null) return STATUS.INVALID_ADDRESS;
  return guests.get(frame.pfn) ?? STATUS.INVALID_GUEST;
}

function isOneOf<Kind extends SnpGuestStateKind>(
  state: SnpGuest['state'],
  kinds: readonly Kind[],
): state is SnpGuestStateOf<Kind> {
  return kinds.some((kind) => kind === state.kind);
}
