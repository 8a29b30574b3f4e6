import { timingSafeEqual } from 'node:crypto';
import { blob, type Field, struct, u8, u32 } from './byte-layout.js';
import { PacketCipher, PREFIX } from './packet-cipher.js';
import type { TransportKeys } from './session.js';

/** The header of a packet of guest memory in transport (sev-firmware.md 3.6). */
export const PACKET_HEADER = struct(52, { flags: u32(0), iv: blob(4, 16), mac: blob(20, 32) });

/** Bit 0 of `flags`. How it would be compressed is not published: never set, and refused (not verified). */
export const PACKET_COMPRESSED = 1;

/** The first byte under a MAC, which says what was authenticated. That VMSAs use 3 is not verified. */
export const MAC_CONTEXT = { LAUNCH_SECRET: 1, UPDATE_DATA: 2, UPDATE_VMSA: 3, MEASURE: 4 } as const;

/** What is authenticated before the data. */
const MAC_PREFIX = struct(PREFIX, { context: u8(0), flagsAndIv: blob(1, 20), guestLength: u32(21), transLength: u32(25) });

export type PacketContext = typeof MAC_CONTEXT.UPDATE_DATA | typeof MAC_CONTEXT.UPDATE_VMSA | typeof MAC_CONTEXT.LAUNCH_SECRET;

/** What a packet is authenticated with besides its data; `measure` for LAUNCH_SECRET only. */
export interface PacketBinding {
  readonly context: PacketContext;
  readonly measure?: Uint8Array;
}

export interface Packet {
  readonly header: Uint8Array;
  readonly data: Uint8Array;
}

/** What has been made of a session's keys, for as long as somebody has these. */
const ciphers = new WeakMap<TransportKeys, PacketCipher>();

const cipherOf = (keys: TransportKeys): PacketCipher => {
  const known = ciphers.get(keys);
  if (known !== undefined) return known;
  const made = new PacketCipher(keys);
  ciphers.set(keys, made);
  return made;
};

/**
 * Encrypts and authenticates guest memory under `keys`. Neither its address nor its place in an order is part of it.
 * @returns a packet of which the data is valid until the next packet of this session
 */
export function sealPacket(keys: TransportKeys, binding: PacketBinding, iv: Uint8Array, plaintext: Uint8Array): Packet {
  const cipher = cipherOf(keys);
  const header = new Uint8Array(PACKET_HEADER.size);
  PACKET_HEADER.iv.set(header, iv);
  cipher.load(plaintext);
  cipher.crypt(iv);
  PACKET_HEADER.mac.set(header, packetMac(cipher, binding, header, plaintext.length, plaintext.length));
  return { header, data: cipher.data };
}

/**
 * The initialisation vector by which a packet continues the key stream of the one before, or null if there was none. Packets
 * of one session that continue each other never use a counter block twice, which is all that CTR asks for.
 */
export function successorIv(keys: TransportKeys): Uint8Array | null {
  const { stream } = cipherOf(keys);
  return stream.hasBegun ? stream.next : null;
}

/**
 * The plaintext of a packet for `guestLength` bytes of guest memory, or null if its MAC is wrong.
 * @returns bytes that are valid until the next packet of this session
 */
export function openPacket(
  keys: TransportKeys,
  binding: PacketBinding,
  { header, data }: Packet,
  guestLength: number,
): Uint8Array | null {
  const cipher = cipherOf(keys);
  cipher.load(data);
  const mac = packetMac(cipher, binding, header, guestLength, data.length);
  if (!timingSafeEqual(mac, partOf(header, PACKET_HEADER.mac))) return null;
  cipher.crypt(partOf(header, PACKET_HEADER.iv));
  return cipher.data;
}

/** A field where it is, not a copy. */
const partOf = (header: Uint8Array, { offset, size }: Field<Uint8Array>): Uint8Array => header.subarray(offset, offset + size);

function packetMac(
  cipher: PacketCipher,
  { context, measure }: PacketBinding,
  header: Uint8Array,
  guestLength: number,
  transLength: number,
): Uint8Array {
  const { prefix } = cipher;
  MAC_PREFIX.context.set(prefix, context);
  MAC_PREFIX.flagsAndIv.set(prefix, header.subarray(0, PACKET_HEADER.mac.offset));
  MAC_PREFIX.guestLength.set(prefix, guestLength);
  MAC_PREFIX.transLength.set(prefix, transLength);
  return cipher.mac(measure);
}
