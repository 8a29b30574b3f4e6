import {
  CHAIN_LENGTH,
  createCertificate,
  parseCertificate,
  SEV_CERTIFICATE,
  USAGE,
} from '../../../../server/hardware/amd/certificates.js';
import { PACKET, RECEIVE_START, SEND_START } from '../../../../server/hardware/amd/command-buffers.js';
import type { GuestStateKind } from '../../../../server/hardware/amd/guest-context.js';
import { type KeyPair, keyPairFromSeed } from '../../../../server/hardware/amd/p384.js';
import { createSession, SESSION, type TransportKeys } from '../../../../server/hardware/amd/session.js';
import { STATUS, type Status } from '../../../../server/hardware/amd/status.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { type Answer, C_BIT, type Rig, set } from './rig.js';

/** A guest owner: an ephemeral key, the session blobs that it makes for a platform, and the keys it put into them. */
export interface GuestOwner {
  readonly key: KeyPair;
  readonly certificate: Uint8Array;
  readonly keys: TransportKeys;
  session(platformPdh: Uint8Array, policy: number): Uint8Array;
}

export function createGuestOwner(seed = 'owner'): GuestOwner {
  const entropy = createEntropy(seed);
  const key = keyPairFromSeed(entropy.fork('key').bytes(56));
  const keys = { tek: entropy.fork('tek').bytes(16), tik: entropy.fork('tik').bytes(16) };
  return {
    key,
    certificate: createCertificate(USAGE.PDH, key.publicKey, { major: 1, minor: 55 }, []),
    keys,
    session: (platformPdh, policy) => {
      const pdh = parseCertificate(platformPdh, USAGE.PDH);
      const session = pdh === null ? null : createSession(key, pdh.publicKey, policy, keys, entropy);
      if (session === null) throw new Error('not a PDH');
      return session;
    },
  };
}

export interface SendRequest {
  readonly handle: number;
  readonly pdh: Uint8Array;
  readonly chain: Uint8Array;
  readonly amd: Uint8Array;
}

export interface SendAnswer extends Answer {
  readonly session: Uint8Array;
}

export function sendStart(rig: Rig, { handle, pdh, chain, amd }: SendRequest): SendAnswer {
  const sessionPaddr = rig.place(new Uint8Array(SESSION.size));
  const answer = rig.issue(
    'SEND_START',
    SEND_START,
    set(SEND_START.handle, handle),
    set(SEND_START.pdhCertPaddr, rig.place(pdh)),
    set(SEND_START.pdhCertLength, pdh.length),
    set(SEND_START.platCertsPaddr, rig.place(chain)),
    set(SEND_START.platCertsLength, chain.length),
    set(SEND_START.amdCertsPaddr, rig.place(amd)),
    set(SEND_START.amdCertsLength, amd.length),
    set(SEND_START.sessionPaddr, sessionPaddr),
    set(SEND_START.sessionLength, SESSION.size),
  );
  return { ...answer, session: rig.cells(sessionPaddr, SESSION.size) };
}

export interface ReceiveRequest {
  readonly policy: number;
  readonly pdh: Uint8Array;
  readonly session: Uint8Array;
}

export function receiveStart(rig: Rig, { policy, pdh, session }: ReceiveRequest): Answer {
  return rig.issue(
    'RECEIVE_START',
    RECEIVE_START,
    set(RECEIVE_START.policy, policy),
    set(RECEIVE_START.pdhCertPaddr, rig.place(pdh)),
    set(RECEIVE_START.pdhCertLength, pdh.length),
    set(RECEIVE_START.sessionPaddr, rig.place(session)),
    set(RECEIVE_START.sessionLength, session.length),
  );
}

export interface PacketBytes {
  readonly header: Uint8Array;
  readonly data: Uint8Array;
}

type SendUpdate = 'SEND_UPDATE_DATA' | 'SEND_UPDATE_VMSA';
type PutPacket = 'RECEIVE_UPDATE_DATA' | 'RECEIVE_UPDATE_VMSA' | 'LAUNCH_SECRET';

export function sendUpdate(rig: Rig, name: SendUpdate, handle: number, guestPaddr: number, length: number): Answer & PacketBytes {
  const hdrPaddr = rig.place(new Uint8Array(52));
  const transPaddr = rig.place(new Uint8Array(length));
  const answer = rig.issue(
    name,
    PACKET,
    set(PACKET.handle, handle),
    set(PACKET.hdrPaddr, hdrPaddr),
    set(PACKET.hdrLength, 52),
    set(PACKET.guestPaddr, C_BIT + guestPaddr),
    set(PACKET.guestLength, length),
    set(PACKET.transPaddr, transPaddr),
    set(PACKET.transLength, length),
  );
  return { ...answer, header: rig.cells(hdrPaddr, 52), data: rig.cells(transPaddr, length) };
}

export function putPacket(rig: Rig, name: PutPacket, handle: number, guestPaddr: number, { header, data }: PacketBytes): Status {
  return rig.issue(
    name,
    PACKET,
    set(PACKET.handle, handle),
    set(PACKET.hdrPaddr, rig.place(header)),
    set(PACKET.hdrLength, header.length),
    set(PACKET.guestPaddr, C_BIT + guestPaddr),
    set(PACKET.guestLength, data.length),
    set(PACKET.transPaddr, rig.place(data)),
    set(PACKET.transLength, data.length),
  ).status;
}

/** What SEND_START needs to send a guest to `target`. */
export function targetCertificates(target: Rig): Omit<SendRequest, 'handle'> {
  const { pdh, chain } = target.exportCertificates();
  const pekAndOca = chain.subarray(0, CHAIN_LENGTH - SEV_CERTIFICATE.size);
  return { pdh, chain: Buffer.concat([pekAndOca, target.processor.endorsedCek()]), amd: target.keyDistribution.bundle() };
}

export interface TestGuest {
  readonly handle: number;
  readonly asid: number;
  readonly policy: number;
  /** A page that the guest's key has encrypted. */
  readonly page: number;
}

function expectSuccess(status: Status, what: string): void {
  if (status !== STATUS.SUCCESS) throw new Error(`${what}: status ${status}`);
}

/** Brings a new, active guest with one page of memory into a state. Sends and receives run on this one platform. */
export function guestInState(rig: Rig, kind: GuestStateKind, asid: number, policy = 0): TestGuest {
  if (kind === 'receive-update') return receivingGuest(rig, asid, policy);
  const handle = rig.launchStart(policy);
  expectSuccess(rig.activate(handle, asid), 'ACTIVATE');
  const page = rig.place(new Uint8Array(PAGE_SIZE).fill(0x5a));
  expectSuccess(rig.launchUpdate('LAUNCH_UPDATE_DATA', handle, page, PAGE_SIZE), 'LAUNCH_UPDATE_DATA');
  const guest = { handle, asid, policy, page };
  if (kind === 'launch-update') return guest;
  rig.measure(handle);
  if (kind === 'launch-secret') return guest;
  expectSuccess(rig.onGuest('LAUNCH_FINISH', handle).status, 'LAUNCH_FINISH');
  if (kind === 'running') return guest;
  expectSuccess(sendStart(rig, { handle, ...targetCertificates(rig) }).status, 'SEND_START');
  if (kind === 'send-update') return guest;
  expectSuccess(rig.onGuest('SEND_FINISH', handle).status, 'SEND_FINISH');
  return guest;
}

function receivingGuest(rig: Rig, asid: number, policy: number): TestGuest {
  const { pdh } = rig.exportCertificates();
  const owner = createGuestOwner('source');
  const answer = receiveStart(rig, { policy, pdh: owner.certificate, session: owner.session(pdh, policy) });
  expectSuccess(answer.status, 'RECEIVE_START');
  const handle = RECEIVE_START.handle.get(answer.buffer);
  expectSuccess(rig.activate(handle, asid), 'ACTIVATE');
  return { handle, asid, policy, page: rig.place(new Uint8Array(PAGE_SIZE)) };
}
