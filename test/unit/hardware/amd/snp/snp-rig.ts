import { INIT } from '../../../../../server/hardware/amd/command-buffers.js';
import type { RmpUpdate } from '../../../../../server/hardware/amd/rmp.js';
import { REPORT } from '../../../../../server/hardware/amd/snp/attestation-report.js';
import * as buffers from '../../../../../server/hardware/amd/snp/command-buffers.js';
import {
  type GuestMessage,
  MESSAGE_TYPE,
  openMessage,
  sealMessage,
} from '../../../../../server/hardware/amd/snp/guest-message.js';
import { SECRETS_PAGE } from '../../../../../server/hardware/amd/snp/secrets-page.js';
import { PAGE_TYPE, type PageType } from '../../../../../server/hardware/amd/snp/snp-launch-digest.js';
import { STATUS, type Status } from '../../../../../server/hardware/amd/status.js';
import type { Frame } from '../../../../../server/hardware/dram.js';
import { asid as asidOf, gpa, hpa, hpaToPfn, PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { createRig, type RigOptions, set } from '../rig.js';

/** SMT allowed, and the bit that must be one. */
export const POLICY = 0x30000n;
const SECRETS_GPA = 0x80d000;

function expectSuccess(status: Status, what: string): void {
  if (status !== STATUS.SUCCESS) throw new Error(`${what}: status ${status}`);
}

/** Whoever has a context and its message keys. */
type Asker = Pick<SnpTestGuest, 'context' | 'vmpcks'>;

export interface SnpTestGuest {
  /** Address of its context. */
  readonly context: number;
  readonly asid: number;
  readonly vmpcks: readonly Uint8Array[];
}

interface RequestAnswer {
  readonly status: Status;
  readonly response: Uint8Array;
}

/** A host on which SEV-SNP can be initialised; the test plays kernel and guest. */
export function createSnpRig(options: RigOptions = {}) {
  const rig = createRig(options);
  const { rmp } = rig;

  function rmpupdate(frame: Frame, update: Partial<RmpUpdate>): void {
    const full = { assigned: true, size: '4k', immutable: false, asid: asidOf(0), gpa: gpa(0), ...update } as const;
    const result = rmp.rmpupdate(frame.pfn, full);
    if (result !== 0) throw new Error(`RMPUPDATE gave ${result}`);
  }

  /** A page that the firmware may write. */
  function firmwarePage(): Frame {
    const frame = rig.frame();
    rmpupdate(frame, { immutable: true });
    return frame;
  }

  function enableSnp(): void {
    const cpus = options.cpus ?? 2;
    for (let cpu = 0; cpu < cpus; cpu++) rig.snpMsrs.write(cpu, { enabled: true, rmpBase: 0x1000_0000, rmpEnd: 0x1fff_ffff });
  }

  const snp = {
    ...rig,
    rmpupdate,
    enableSnp,

    /** SNP_INIT_EX with a new table, and the flush after it; then INIT, which legacy guests need. */
    snpInit(): void {
      enableSnp();
      expectSuccess(rig.issue('SNP_INIT_EX', buffers.SNP_INIT_EX, set(buffers.SNP_INIT_EX.flags, 1)).status, 'SNP_INIT_EX');
      rig.wbinvdOnAllCpus();
      expectSuccess(rig.issue('SNP_DF_FLUSH').status, 'SNP_DF_FLUSH');
    },

    legacyInit(): void {
      expectSuccess(rig.issue('INIT', INIT).status, 'INIT');
      rig.flush();
    },

    firmwarePage,

    onContext(name: 'SNP_GCTX_CREATE' | 'SNP_DECOMMISSION', context: number): Status {
      return rig.issue(name, buffers.SNP_GCTX, set(buffers.SNP_GCTX.gctxPaddr, context)).status;
    },

    /** SNP_GCTX_CREATE; the address of the context. */
    createContext(): number {
      const frame = firmwarePage();
      expectSuccess(snp.onContext('SNP_GCTX_CREATE', frame.hpa), 'SNP_GCTX_CREATE');
      return frame.hpa;
    },

    launchStart(context: number, policy = POLICY): Status {
      const { SNP_LAUNCH_START } = buffers;
      return rig.issue(
        'SNP_LAUNCH_START',
        SNP_LAUNCH_START,
        set(SNP_LAUNCH_START.gctxPaddr, context),
        set(SNP_LAUNCH_START.policy, policy),
      ).status;
    },

    activate(context: number, asid: number): Status {
      const { SNP_ACTIVATE } = buffers;
      return rig.issue('SNP_ACTIVATE', SNP_ACTIVATE, set(SNP_ACTIVATE.gctxPaddr, context), set(SNP_ACTIVATE.asid, asid)).status;
    },

    launchUpdate(context: number, type: PageType | 0 | 7, address: number): Status {
      const { SNP_LAUNCH_UPDATE } = buffers;
      const settings = [set(SNP_LAUNCH_UPDATE.gctxPaddr, context), set(SNP_LAUNCH_UPDATE.flags, type << 1)];
      return rig.issue('SNP_LAUNCH_UPDATE', SNP_LAUNCH_UPDATE, ...settings, set(SNP_LAUNCH_UPDATE.pagePaddr, address)).status;
    },

    launchFinish(context: number, flags = 0, idBlock = 0, idAuth = 0): Status {
      const { SNP_LAUNCH_FINISH } = buffers;
      return rig.issue(
        'SNP_LAUNCH_FINISH',
        SNP_LAUNCH_FINISH,
        set(SNP_LAUNCH_FINISH.gctxPaddr, context),
        set(SNP_LAUNCH_FINISH.flags, flags),
        set(SNP_LAUNCH_FINISH.idBlockPaddr, idBlock),
        set(SNP_LAUNCH_FINISH.idAuthPaddr, idAuth),
        set(SNP_LAUNCH_FINISH.hostData, new Uint8Array(32).fill(0x11)),
      ).status;
    },

    /** Puts plaintext into a page, gives it to a guest by RMPUPDATE and launches it, as the kernel does; its address. */
    launchPage(
      context: number,
      asid: number,
      type: PageType,
      address: number,
      plaintext: Uint8Array = new Uint8Array(PAGE_SIZE),
    ): number {
      const frame = rig.frame();
      frame.viewForWrite(null).set(plaintext);
      rmpupdate(frame, { immutable: true, asid: asidOf(asid), gpa: gpa(address) });
      expectSuccess(snp.launchUpdate(context, type, frame.hpa), 'SNP_LAUNCH_UPDATE');
      return frame.hpa;
    },

    guestStatus(context: number): Uint8Array {
      const page = firmwarePage();
      const { SNP_GUEST_STATUS } = buffers;
      const settings = [set(SNP_GUEST_STATUS.gctxPaddr, context), set(SNP_GUEST_STATUS.statusPaddr, page.hpa)];
      expectSuccess(rig.issue('SNP_GUEST_STATUS', SNP_GUEST_STATUS, ...settings).status, 'SNP_GUEST_STATUS');
      return rig.cells(page.hpa, 32);
    },

    /** A guest that has been launched with a secrets page and activated; `vmpcks` are what it reads there. */
    runningGuest(asid = 1, policy = POLICY): SnpTestGuest {
      const guest = snp.launchingGuest(asid, policy);
      expectSuccess(snp.launchFinish(guest.context), 'SNP_LAUNCH_FINISH');
      return guest;
    },

    /** A guest with nothing launched yet. */
    launchContext(asid = 1, policy = POLICY): { readonly context: number; readonly asid: number } {
      const context = snp.createContext();
      expectSuccess(snp.launchStart(context, policy), 'SNP_LAUNCH_START');
      expectSuccess(snp.activate(context, asid), 'SNP_ACTIVATE');
      return { context, asid };
    },

    launchingGuest(asid = 1, policy = POLICY): SnpTestGuest {
      const { context } = snp.launchContext(asid, policy);
      const secrets = rig.seenBy(asid, snp.launchPage(context, asid, PAGE_TYPE.SECRETS, SECRETS_GPA), PAGE_SIZE);
      const vmpcks = [SECRETS_PAGE.vmpck0, SECRETS_PAGE.vmpck1, SECRETS_PAGE.vmpck2, SECRETS_PAGE.vmpck3].map((field) =>
        field.get(secrets),
      );
      return { context, asid, vmpcks };
    },

    /** SNP_GUEST_REQUEST with a page as the guest made it. */
    request(context: number, message: Uint8Array, requestPage = rig.frame(), responsePage = firmwarePage()): RequestAnswer {
      const { SNP_GUEST_REQUEST } = buffers;
      if (rmp.checkHostWrite(requestPage.pfn) === null) requestPage.viewForWrite(null).set(message);
      const { status } = rig.issue(
        'SNP_GUEST_REQUEST',
        SNP_GUEST_REQUEST,
        set(SNP_GUEST_REQUEST.gctxPaddr, context),
        set(SNP_GUEST_REQUEST.requestPaddr, requestPage.hpa),
        set(SNP_GUEST_REQUEST.responsePaddr, responsePage.hpa),
      );
      return { status, response: rig.cells(responsePage.hpa, PAGE_SIZE) };
    },

    /** A request and its decrypted answer. */
    ask(guest: Asker, message: GuestMessage): { readonly status: Status; readonly answer: GuestMessage | null } {
      const key = guest.vmpcks[message.vmpck] ?? new Uint8Array(32);
      const { status, response } = snp.request(guest.context, sealMessage(key, message));
      return { status, answer: status === STATUS.SUCCESS ? openMessage(key, response) : null };
    },

    /** A report on a guest, asked for under VMPCK0 with a sequence number. */
    report(guest: Asker, seqno = 1n, keySelect = 0): { readonly status: number; readonly report: Uint8Array } {
      const payload = new Uint8Array(96);
      payload.fill(0x42, 0, 64);
      payload[68] = keySelect;
      const { answer } = snp.ask(guest, { type: MESSAGE_TYPE.REPORT_REQ, seqno, vmpck: 0, payload });
      if (answer === null) throw new Error('no report');
      return { status: answer.payload[0] ?? 0, report: answer.payload.slice(32, 32 + REPORT.size) };
    },

    dramPage: (address: number) => hpaToPfn(hpa(address)),
    stateOf: (address: number) => rmp.state(hpaToPfn(hpa(address))),
  };
  return snp;
}

export type SnpRig = ReturnType<typeof createSnpRig>;

/** A platform on which SEV-SNP is initialised. */
export const initialised = (): SnpRig => {
  const rig = createSnpRig();
  rig.snpInit();
  return rig;
};
