import { createCipheriv, createHash, createHmac } from 'node:crypto';
import { LAUNCH_UPDATE, PACKET, RECEIVE_START, SEND_START } from '../../server/hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../server/hardware/amd/command-ids.js';
import { STATUS } from '../../server/hardware/amd/status.js';
import { type Hpa, hpa, PAGE_SIZE } from '../../server/hardware/units.js';
import { guestInState, receiveStart, sendStart, targetCertificates } from '../unit/hardware/amd/guests.js';
import { C_BIT, createRig, type Rig } from '../unit/hardware/amd/rig.js';
import { alternate, type Figure } from './figure.js';

/** Pages of one batch, all of which are made ready before the clock starts. */
const BATCH = 256;
/**
 * So many that V8 collects the buffers of the cipher's results several times while one side has its turn. After a collection a
 * thousand pages cost four times as much, for the buffers are given back beside; were a turn shorter than from one to the next, the
 * same side would often pay for what both have left.
 */
const BATCHES = 64;
const ROUNDS = 15;
const HEADER_BYTES = 52;
const KEY = new Uint8Array(16).fill(7);
/** XTS refuses a key whose halves are the same. */
const TWEAKED_KEY = Uint8Array.from({ length: 32 }, (_, index) => index);

/** Work on one page of a batch; `prepare`, which is not measured, comes before each batch. */
interface Work {
  prepare?(): void;
  once(index: number): void;
}

/** MB/s of some work. */
const throughput = async ({ prepare, once }: Work): Promise<number> => {
  let nanoseconds = 0n;
  for (let batch = 0; batch < BATCHES; batch++) {
    prepare?.();
    const begin = process.hrtime.bigint();
    for (let index = 0; index < BATCH; index++) once(index);
    nanoseconds += process.hrtime.bigint() - begin;
  }
  return (BATCHES * BATCH * PAGE_SIZE) / (Number(nanoseconds) / 1000);
};

const page = new Uint8Array(PAGE_SIZE).fill(0x5a);
/** As many pages as the commands work on, so that caches do as much for both. */
const pages = Array.from({ length: BATCH }, () => new Uint8Array(page));
const ecb = createCipheriv('aes-128-ecb', KEY, null).setAutoPadding(false);
const digest = createHash('sha256');

/** A page digested and encrypted by the bare primitives, as a launch does it. */
const bareLaunch = (index: number): void => {
  const bytes = pages[index];
  if (bytes === undefined) return;
  digest.update(bytes);
  ecb.update(bytes);
};

/** The same with the one mode of the bare cipher that is tweaked as memory encryption is; the tweak wants an object for each page. */
const bareTweakedLaunch = (index: number): void => {
  const bytes = pages[index];
  if (bytes === undefined) return;
  digest.update(bytes);
  createCipheriv('aes-128-xts', TWEAKED_KEY, KEY).update(bytes);
};

/** A page encrypted and authenticated by the bare primitives, as a packet in transport is: each has its own vector and MAC. */
const barePacket = (): void => {
  const data = createCipheriv('aes-128-ctr', KEY, KEY).update(page);
  createHmac('sha256', KEY).update(data).digest();
};

const issuer =
  ({ processor }: Rig, name: CommandName, buffer: Hpa) =>
  (): void => {
    const status = processor.issue(COMMAND[name], buffer);
    if (status !== STATUS.SUCCESS) throw new Error(`${name}: status ${status}`);
  };

/** Room for a packet in a platform's memory, and the buffer of the commands that send or receive it. */
const packetRoom = (rig: Rig, handle: number, guest: number) => {
  const [header, data] = [rig.frame(), rig.frame()];
  const buffer = new Uint8Array(PACKET.size);
  PACKET.handle.set(buffer, handle);
  PACKET.hdrPaddr.set(buffer, header.hpa);
  PACKET.hdrLength.set(buffer, HEADER_BYTES);
  PACKET.guestPaddr.set(buffer, C_BIT + guest);
  PACKET.guestLength.set(buffer, PAGE_SIZE);
  PACKET.transPaddr.set(buffer, data.hpa);
  PACKET.transLength.set(buffer, PAGE_SIZE);
  return { header, data, buffer: hpa(rig.place(buffer)) };
};

/** LAUNCH_UPDATE_DATA of pages that the host has filled; with `look`, each is read as ciphertext from the bus afterwards. */
const launchUpdate = (rig: Rig, look: boolean): Work => {
  const { handle } = guestInState(rig, 'launch-update', 5);
  const frames = Array.from({ length: BATCH }, rig.frame);
  const buffer = rig.frame();
  const command = new Uint8Array(LAUNCH_UPDATE.size);
  LAUNCH_UPDATE.handle.set(command, handle);
  LAUNCH_UPDATE.length.set(command, PAGE_SIZE);
  const issue = issuer(rig, 'LAUNCH_UPDATE_DATA', buffer.hpa);
  return {
    prepare: () => {
      for (const frame of frames) frame.overwrite(null, page);
    },
    once: (index) => {
      const frame = frames[index];
      if (frame === undefined) return;
      LAUNCH_UPDATE.paddr.set(command, frame.hpa);
      buffer.viewForWrite(null).set(command);
      issue();
      if (look) frame.view(null);
    },
  };
};

const initialised = (seed: string): Rig => {
  const rig = createRig({ seed });
  rig.init();
  return rig;
};

/** SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA of one guest between two platforms: packets are received in the order in which they were sent. */
const packets = (): { readonly send: Work; readonly receive: Work } => {
  const [here, there] = [initialised('here'), initialised('there')];
  const { handle, page: address } = guestInState(here, 'running', 5);
  const started = sendStart(here, { handle, ...targetCertificates(there) });
  const policy = SEND_START.policy.get(started.buffer);
  const { pdh } = here.exportCertificates();
  const received = RECEIVE_START.handle.get(receiveStart(there, { policy, pdh, session: started.session }).buffer);
  there.activate(received, 5);
  const out = packetRoom(here, handle, address);
  const send = issuer(here, 'SEND_UPDATE_DATA', out.buffer);
  const rooms = pages.map(() => packetRoom(there, received, there.place(new Uint8Array(PAGE_SIZE))));
  const receivers = rooms.map(({ buffer }) => issuer(there, 'RECEIVE_UPDATE_DATA', buffer));
  const transport = (): void => {
    for (const { header, data } of rooms) {
      send();
      header.overwrite(null, out.header.view(null));
      data.overwrite(null, out.data.view(null));
    }
  };
  return { send: { once: send }, receive: { prepare: transport, once: (index) => receivers[index]?.() } };
};

const figure = async (name: string, primitives: string, ours: Work, bare: Work): Promise<Figure> => {
  const pair = await alternate(
    ROUNDS,
    () => throughput(ours),
    () => throughput(bare),
  );
  const rate = (value: number): string => `${value.toFixed(0)} MB/s`;
  return {
    name: `${name}, 4 KiB`,
    ours: rate(pair.ours),
    baseline: `${primitives}, ${rate(pair.baseline)}`,
    ratio: pair.ratio,
    target: 'at least 0.7',
  };
};

/** What the secure processor's commands on guest memory cost beside the cipher and the MAC that they are made of. */
export const measureSev = async (): Promise<Figure[]> => {
  const { send, receive } = packets();
  return [
    await figure('LAUNCH_UPDATE_DATA', 'AES-128 and SHA-256', launchUpdate(initialised('launch'), false), { once: bareLaunch }),
    await figure('LAUNCH_UPDATE_DATA, then read', 'AES-128 and SHA-256', launchUpdate(initialised('read'), true), {
      once: bareLaunch,
    }),
    await figure('LAUNCH_UPDATE_DATA, then read', 'AES-128-XTS and SHA-256', launchUpdate(initialised('read'), true), {
      once: bareTweakedLaunch,
    }),
    await figure('SEND_UPDATE_DATA', 'AES-128-CTR and HMAC', send, { once: barePacket }),
    await figure('RECEIVE_UPDATE_DATA', 'AES-128-CTR and HMAC', receive, { once: barePacket }),
  ];
};
