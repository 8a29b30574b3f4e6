import type { Hpa } from '../units.js';
import type { Field, Struct } from './byte-layout.js';
import type { CommandName } from './command-ids.js';
import type { Firmware } from './firmware.js';
import type { GuestContext, GuestStateKind, GuestStateOf } from './guest-context.js';
import type { EncryptionKey } from './memory-encryption.js';
import type { InitialisedPlatform, PlatformStateKind } from './platform-state.js';
import { STATUS, type Status } from './status.js';

/** One command of the mailbox: reads its buffer at `address`, checks, acts, writes its outputs back. */
export interface Command {
  readonly name: CommandName;
  execute(firmware: Firmware, address: Hpa): Status;
}

/** A command buffer with output fields is written back also when the command fails, so that length queries work. */
export interface BufferSpec<Layout extends Struct = Struct> {
  readonly struct: Layout;
  readonly hasInput: boolean;
  readonly hasOutput: boolean;
}

export const input = <Layout extends Struct>(struct: Layout): BufferSpec<Layout> => ({
  struct,
  hasInput: true,
  hasOutput: false,
});
export const output = <Layout extends Struct>(struct: Layout): BufferSpec<Layout> => ({
  struct,
  hasInput: false,
  hasOutput: true,
});
export const inputOutput = <Layout extends Struct>(struct: Layout): BufferSpec<Layout> => ({
  struct,
  hasInput: true,
  hasOutput: true,
});

const NO_BUFFER = new Uint8Array(0);

/**
 * The order of checks of all commands: platform state, address of the command buffer, reserved bytes, then what the
 * command itself checks (sev-firmware.md 2.4).
 */
export function withBuffer(
  firmware: Firmware,
  address: Hpa,
  spec: BufferSpec | null,
  run: (buffer: Uint8Array) => Status,
): Status {
  if (spec === null) return run(NO_BUFFER);
  const stored = firmware.memory.read(address, spec.struct.size, null);
  if (stored === null) return STATUS.INVALID_ADDRESS;
  // A copy: what the command changes becomes visible when it is done.
  const buffer = new Uint8Array(stored);
  if (spec.hasInput && !spec.struct.reservedIsZero(buffer)) return STATUS.INVALID_PARAM;
  const writable = spec.hasOutput ? firmware.memory.checkWrite([address, buffer.length]) : STATUS.SUCCESS;
  if (writable !== STATUS.SUCCESS) return writable;
  const status = run(buffer);
  if (spec.hasOutput) firmware.memory.writeAllowed(address, buffer, null);
  return status;
}

interface PlatformCommandSpec {
  readonly name: CommandName;
  readonly states: readonly PlatformStateKind[];
  readonly buffer: BufferSpec | null;
  run(firmware: Firmware, buffer: Uint8Array): Status;
}

/** A command that is legal in some states of the platform, UNINIT among them. */
export function platformCommand({ name, states, buffer, run }: PlatformCommandSpec): Command {
  return {
    name,
    execute: (firmware, address) =>
      states.includes(firmware.platform.kind)
        ? withBuffer(firmware, address, buffer, (bytes) => run(firmware, bytes))
        : STATUS.INVALID_PLATFORM_STATE,
  };
}

interface InitialisedCommandSpec {
  readonly name: CommandName;
  readonly states: readonly InitialisedPlatform['kind'][];
  readonly buffer: BufferSpec | null;
  run(firmware: Firmware, platform: InitialisedPlatform, buffer: Uint8Array): Status;
}

/** A command that needs an initialised platform. */
export function initialisedCommand({ name, states, buffer, run }: InitialisedCommandSpec): Command {
  return {
    name,
    execute: (firmware, address) => {
      const { platform } = firmware;
      if (platform.kind === 'uninit' || !states.includes(platform.kind)) return STATUS.INVALID_PLATFORM_STATE;
      return withBuffer(firmware, address, buffer, (bytes) => run(firmware, platform, bytes));
    },
  };
}

/** What a guest command works on. */
export interface GuestCall<Kind extends GuestStateKind> {
  readonly firmware: Firmware;
  readonly platform: InitialisedPlatform;
  readonly guest: GuestContext;
  readonly state: GuestStateOf<Kind>;
  readonly buffer: Uint8Array;
}

/** A guest call that touches guest memory: `key` is the guest's key in the memory controllers. */
export interface ActiveGuestCall<Kind extends GuestStateKind> extends GuestCall<Kind> {
  readonly key: EncryptionKey;
}

interface GuestCommandSpec<Kind extends GuestStateKind, Call> {
  readonly name: CommandName;
  readonly states: readonly Kind[];
  readonly buffer: BufferSpec<Struct & { readonly handle: Field<number> }>;
  run(call: Call): Status;
}

/** A command on an existing guest in one of some states. */
export function guestCommand<Kind extends GuestStateKind>({
  name,
  states,
  buffer,
  run,
}: GuestCommandSpec<Kind, GuestCall<Kind>>): Command {
  return initialisedCommand({
    name,
    states: ['working'],
    buffer,
    run: (firmware, platform, bytes) => {
      const guest = platform.guests.get(buffer.struct.handle.get(bytes));
      if (guest === undefined) return STATUS.INVALID_GUEST;
      const { state } = guest;
      if (!isOneOf(state, states)) return STATUS.INVALID_GUEST_STATE;
      return run({ firmware, platform, guest, state, buffer: bytes });
    },
  });
}

/** A command on the memory of an existing guest, which must be active. */
export function activeGuestCommand<Kind extends GuestStateKind>(spec: GuestCommandSpec<Kind, ActiveGuestCall<Kind>>): Command {
  return guestCommand({
    name: spec.name,
    states: spec.states,
    buffer: spec.buffer,
    run: ({ firmware, platform, guest, state, buffer }) => {
      const { activation } = guest;
      if (activation === null) return STATUS.INACTIVE;
      return spec.run({ firmware, platform, guest, state, buffer, key: activation.key });
    },
  });
}

function isOneOf<Kind extends GuestStateKind>(state: GuestContext['state'], kinds: readonly Kind[]): state is GuestStateOf<Kind> {
  for (const kind of kinds) if (kind === state.kind) return true;
  return false;
}

/** An output buffer of a length that the caller must know: too short a buffer is a query for it. */
export function lengthQuery(buffer: Uint8Array, field: Field<number>, needed: number): boolean {
  const given = field.get(buffer);
  field.set(buffer, needed);
  return given < needed;
}
