import { describe, expect, it } from 'vitest';
import {
  addSignature,
  CHAIN_LENGTH,
  createCertificate,
  SEV_CERTIFICATE,
  USAGE,
} from '../../../../server/hardware/amd/certificates.js';
import * as buffers from '../../../../server/hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../../server/hardware/amd/command-ids.js';
import { GUEST_STATE_NUMBER, type GuestStateKind } from '../../../../server/hardware/amd/guest-context.js';
import { keyPairFromSeed } from '../../../../server/hardware/amd/p384.js';
import { MAC_CONTEXT, type PacketContext, sealPacket } from '../../../../server/hardware/amd/packet.js';
import { PLATFORM_STATE_NUMBER, type PlatformStateKind } from '../../../../server/hardware/amd/platform-state.js';
import { STATUS, type Status } from '../../../../server/hardware/amd/status.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import {
  createGuestOwner,
  guestInState,
  putPacket,
  receiveStart,
  sendStart,
  sendUpdate,
  type TestGuest,
  targetCertificates,
} from './guests.js';
import { createRig, jsonVector, type Rig, set, VECTORS_NEEDED, vectorsAbsent } from './rig.js';

/**
 * Every command in every state, generated from the reference's table (`state-matrix.json`): where the table allows it,
 * a well-formed command succeeds and leads to the state that the table says; elsewhere it is refused with the status for
 * a wrong platform or guest state, and changes nothing.
 */

interface Row {
  readonly id: number;
  readonly allowed: readonly string[];
  readonly maybeAllowed?: readonly string[];
  readonly result: string;
}

interface Matrix {
  readonly legacyPlatform: { readonly states: Record<string, number>; readonly commands: Record<string, Row> };
  readonly legacyGuest: { readonly states: Record<string, number>; readonly commands: Record<string, Row> };
}

function isMatrix(value: unknown): value is Matrix {
  return typeof value === 'object' && value !== null && 'legacyPlatform' in value && 'legacyGuest' in value;
}

function loadMatrix(): Matrix | null {
  if (vectorsAbsent) return null;
  const matrix = jsonVector('state-matrix.json');
  if (!isMatrix(matrix)) throw new Error('not the state matrix');
  return matrix;
}

const matrix = loadMatrix();

const GUEST_STATES: Readonly<Record<string, GuestStateKind>> = {
  LUPDATE: 'launch-update',
  LSECRET: 'launch-secret',
  RUNNING: 'running',
  SUPDATE: 'send-update',
  RUPDATE: 'receive-update',
  SENT: 'sent',
};
const PLATFORM_STATES: Readonly<Record<string, PlatformStateKind>> = { UNINIT: 'uninit', INIT: 'init', WORKING: 'working' };

const isCommandName = (name: string): name is CommandName => name in COMMAND;

const ES = 4;
const FREE_ASID = 4;
const GUEST_ASID = 3;

const target = (() => {
  const platform = createRig({ seed: 'target' });
  platform.init();
  return targetCertificates(platform);
})();

/** A well-formed use of a guest command. */
function use(rig: Rig, name: CommandName, guest: TestGuest): Status {
  const { handle, page } = guest;
  const packet = (context: PacketContext, measure?: Uint8Array) => {
    const binding = measure === undefined ? { context } : { context, measure };
    return sealPacket(createGuestOwner('source').keys, binding, new Uint8Array(16), new Uint8Array(PAGE_SIZE));
  };
  switch (name) {
    case 'LAUNCH_START':
      return rig.issue(name, buffers.LAUNCH_START, set(buffers.LAUNCH_START.policy, 0)).status;
    case 'RECEIVE_START': {
      const owner = createGuestOwner('source');
      const { pdh } = rig.exportCertificates();
      return receiveStart(rig, { policy: 0, pdh: owner.certificate, session: owner.session(pdh, 0) }).status;
    }
    case 'LAUNCH_UPDATE_DATA':
    case 'LAUNCH_UPDATE_VMSA':
      return rig.launchUpdate(name, handle, rig.place(new Uint8Array(PAGE_SIZE)), PAGE_SIZE);
    case 'LAUNCH_MEASURE': {
      const { LAUNCH_MEASURE } = buffers;
      const paddr = rig.place(new Uint8Array(48));
      const settings = [
        set(LAUNCH_MEASURE.handle, handle),
        set(LAUNCH_MEASURE.measurePaddr, paddr),
        set(LAUNCH_MEASURE.measureLength, 48),
      ];
      return rig.issue(name, LAUNCH_MEASURE, ...settings).status;
    }
    case 'ATTESTATION': {
      const { ATTESTATION } = buffers;
      const paddr = rig.place(new Uint8Array(208));
      return rig.issue(
        name,
        ATTESTATION,
        set(ATTESTATION.handle, handle),
        set(ATTESTATION.paddr, paddr),
        set(ATTESTATION.length, 208),
      ).status;
    }
    case 'LAUNCH_SECRET':
      // The rig does not know the keys of a guest that was launched without a session: the MAC is the last check.
      return putPacket(rig, name, handle, page, packet(MAC_CONTEXT.LAUNCH_SECRET, new Uint8Array(32)));
    case 'SEND_START':
      return sendStart(rig, { handle, ...target }).status;
    case 'SEND_UPDATE_DATA':
    case 'SEND_UPDATE_VMSA':
      return sendUpdate(rig, name, handle, page, PAGE_SIZE).status;
    case 'RECEIVE_UPDATE_DATA':
      return putPacket(rig, name, handle, page, packet(MAC_CONTEXT.UPDATE_DATA));
    case 'RECEIVE_UPDATE_VMSA':
      return putPacket(rig, name, handle, page, packet(MAC_CONTEXT.UPDATE_VMSA));
    case 'ACTIVATE':
      rig.onGuest('DEACTIVATE', handle);
      rig.wbinvdOnAllCpus();
      rig.issue('DF_FLUSH');
      return rig.activate(handle, FREE_ASID);
    case 'DECOMMISSION':
      rig.onGuest('DEACTIVATE', handle);
      return rig.onGuest(name, handle).status;
    case 'GUEST_STATUS':
      return rig.guestStatus(handle).status;
    default:
      return rig.onGuest(name, handle).status;
  }
}

/** An error other than success that shows that the state check was passed. */
const PASSED_TO: Readonly<Record<string, Status>> = { LAUNCH_SECRET: STATUS.BAD_MEASUREMENT };

describe.skipIf(matrix === null)(`legacy guest commands in every guest state (${VECTORS_NEEDED})`, () => {
  const commands = Object.entries(matrix?.legacyGuest.commands ?? {});
  for (const [stateName, kind] of Object.entries(GUEST_STATES)) {
    describe(`in ${stateName}`, () => {
      it('has the number that GUEST_STATUS gives', () => {
        const rig = createRig();
        rig.init();
        const guest = guestInState(rig, kind, GUEST_ASID, ES);
        expect(buffers.GUEST_STATUS.state.get(rig.guestStatus(guest.handle).buffer)).toBe(matrix?.legacyGuest.states[stateName]);
        expect(GUEST_STATE_NUMBER[kind]).toBe(matrix?.legacyGuest.states[stateName]);
      });

      for (const [name, row] of commands) {
        if (!isCommandName(name)) throw new Error(`${name} is not implemented`);
        // A new context can be made whatever state other guests are in.
        const makesGuest = row.allowed.includes('UNINIT');
        const allowed = makesGuest || row.allowed.includes(stateName) || (row.maybeAllowed ?? []).includes(stateName);

        it(`${name} is ${allowed ? 'done' : 'refused'}`, () => {
          const rig = createRig();
          rig.init();
          const guest = guestInState(rig, kind, GUEST_ASID, ES);
          const status = use(rig, name, guest);
          expect(COMMAND[name]).toBe(row.id);
          expect(status).toBe(allowed ? (PASSED_TO[name] ?? STATUS.SUCCESS) : STATUS.INVALID_GUEST_STATE);
          const after = rig.processor.guests().find(({ handle }) => handle === guest.handle);
          const result = allowed && !makesGuest && row.result !== 'same' ? row.result : stateName;
          expect(after?.state).toBe(result === 'UNINIT' ? undefined : GUEST_STATES[result]);
        });
      }
    });
  }

  it('LAUNCH_START and RECEIVE_START make a guest in the first state of their kind', () => {
    const rig = createRig();
    rig.init();
    const nobody = { handle: 0, asid: 0, policy: 0, page: 0 };
    expect(use(rig, 'LAUNCH_START', nobody)).toBe(STATUS.SUCCESS);
    expect(use(rig, 'RECEIVE_START', nobody)).toBe(STATUS.SUCCESS);
    expect(rig.processor.guests().map(({ state }) => state)).toEqual(['launch-update', 'receive-update']);
  });

  it('refuses every command on a handle without a guest', () => {
    const rig = createRig();
    rig.init();
    guestInState(rig, 'running', GUEST_ASID, ES);
    for (const [name, row] of commands) {
      if (!isCommandName(name) || row.allowed.includes('UNINIT')) continue;
      expect([name, use(rig, name, { handle: 77, asid: 0, policy: 0, page: rig.place(new Uint8Array(PAGE_SIZE)) })]).toEqual([
        name,
        STATUS.INVALID_GUEST,
      ]);
    }
  });

  for (const platformState of ['UNINIT', 'INIT']) {
    it(`refuses every command on a guest while the platform is ${platformState}`, () => {
      const rig = createRig();
      if (platformState === 'INIT') rig.init();
      for (const [name, row] of commands) {
        if (!isCommandName(name) || row.allowed.includes('UNINIT')) continue;
        expect([name, use(rig, name, { handle: 1, asid: 0, policy: 0, page: 0 })]).toEqual([name, STATUS.INVALID_PLATFORM_STATE]);
      }
    });
  }
});

describe.skipIf(matrix === null)(`platform commands in every platform state (${VECTORS_NEEDED})`, () => {
  /** A well-formed use of a platform command. */
  function usePlatform(rig: Rig, name: CommandName): Status {
    const { DOWNLOAD_FIRMWARE, INIT, INIT_EX, PEK_CSR, GET_ID, PLATFORM_STATUS, PEK_CERT_IMPORT } = buffers;
    switch (name) {
      case 'INIT':
        return rig.issue(name, INIT).status;
      case 'INIT_EX': {
        const nvPaddr = rig.place(new Uint8Array(0x8000).fill(0xff));
        return rig.issue(name, INIT_EX, set(INIT_EX.length, 36), set(INIT_EX.nvPaddr, nvPaddr), set(INIT_EX.nvLength, 0x8000))
          .status;
      }
      case 'PLATFORM_STATUS':
        return rig.issue(name, PLATFORM_STATUS).status;
      case 'PEK_CSR': {
        const paddr = rig.place(new Uint8Array(SEV_CERTIFICATE.size));
        return rig.issue(name, PEK_CSR, set(PEK_CSR.csrPaddr, paddr), set(PEK_CSR.csrLength, SEV_CERTIFICATE.size)).status;
      }
      case 'PEK_CERT_IMPORT': {
        const { oca, pek } =
          rig.processor.state === 'init' ? signedByNewOwner(rig) : { oca: new Uint8Array(2084), pek: new Uint8Array(2084) };
        return rig.issue(
          name,
          PEK_CERT_IMPORT,
          set(PEK_CERT_IMPORT.pekCertPaddr, rig.place(pek)),
          set(PEK_CERT_IMPORT.pekCertLength, pek.length),
          set(PEK_CERT_IMPORT.ocaCertPaddr, rig.place(oca)),
          set(PEK_CERT_IMPORT.ocaCertLength, oca.length),
        ).status;
      }
      case 'PDH_CERT_EXPORT': {
        const { PDH_CERT_EXPORT } = buffers;
        return rig.issue(
          name,
          PDH_CERT_EXPORT,
          set(PDH_CERT_EXPORT.pdhCertPaddr, rig.place(new Uint8Array(SEV_CERTIFICATE.size))),
          set(PDH_CERT_EXPORT.pdhCertLength, SEV_CERTIFICATE.size),
          set(PDH_CERT_EXPORT.certsPaddr, rig.place(new Uint8Array(CHAIN_LENGTH))),
          set(PDH_CERT_EXPORT.certsLength, CHAIN_LENGTH),
        ).status;
      }
      case 'GET_ID':
        return rig.issue(name, GET_ID, set(GET_ID.idPaddr, rig.place(new Uint8Array(64))), set(GET_ID.idLength, 64)).status;
      case 'DOWNLOAD_FIRMWARE': {
        const image = rig.keyDistribution.firmwareImage({ major: 1, minor: 56, build: 1 });
        const settings = [set(DOWNLOAD_FIRMWARE.fwPaddr, rig.place(image)), set(DOWNLOAD_FIRMWARE.fwLength, image.length)];
        return rig.issue(name, DOWNLOAD_FIRMWARE, ...settings).status;
      }
      case 'DF_FLUSH':
        rig.wbinvdOnAllCpus();
        return rig.issue(name).status;
      default:
        return rig.issue(name).status;
    }
  }

  function signedByNewOwner(rig: Rig): { readonly oca: Uint8Array; readonly pek: Uint8Array } {
    const key = keyPairFromSeed(createEntropy('another owner').bytes(56));
    const api = { major: 1, minor: 55 };
    const oca = createCertificate(USAGE.OCA, key.publicKey, api, [{ usage: USAGE.OCA, key }]);
    const { PEK_CSR } = buffers;
    const paddr = rig.place(new Uint8Array(SEV_CERTIFICATE.size));
    rig.issue('PEK_CSR', PEK_CSR, set(PEK_CSR.csrPaddr, paddr), set(PEK_CSR.csrLength, SEV_CERTIFICATE.size));
    return { oca, pek: addSignature(rig.cells(paddr, SEV_CERTIFICATE.size), { usage: USAGE.OCA, key }) };
  }

  for (const [stateName, kind] of Object.entries(PLATFORM_STATES)) {
    describe(`in ${stateName}`, () => {
      it('has the number that PLATFORM_STATUS gives', () => {
        expect(PLATFORM_STATE_NUMBER[kind]).toBe(matrix?.legacyPlatform.states[stateName]);
      });

      for (const [name, row] of Object.entries(matrix?.legacyPlatform.commands ?? {})) {
        if (!isCommandName(name)) throw new Error(`${name} is not implemented`);
        const allowed = row.allowed.includes(stateName);

        it(`${name} is ${allowed ? 'done' : 'refused'}`, () => {
          const rig = createRig();
          if (kind !== 'uninit') rig.init();
          if (kind === 'working') rig.launchStart();
          const status = usePlatform(rig, name);
          expect(COMMAND[name]).toBe(row.id);
          expect(status).toBe(allowed ? STATUS.SUCCESS : STATUS.INVALID_PLATFORM_STATE);
          const result = allowed && row.result !== 'same' ? PLATFORM_STATES[row.result] : kind;
          expect(rig.processor.state).toBe(result);
        });
      }
    });
  }
});
