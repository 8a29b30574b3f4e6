import { existsSync, readFileSync } from 'node:fs';
import { type Field, type Struct, u32 } from '../../../../server/hardware/amd/byte-layout.js';
import { CHAIN_LENGTH, SEV_CERTIFICATE } from '../../../../server/hardware/amd/certificates.js';
import * as buffers from '../../../../server/hardware/amd/command-buffers.js';
import { COMMAND, type CommandName } from '../../../../server/hardware/amd/command-ids.js';
import { C_BIT_POSITION } from '../../../../server/hardware/amd/firmware-memory.js';
import { createAmdPlatform } from '../../../../server/hardware/amd/platform.js';
import { STATUS, type Status } from '../../../../server/hardware/amd/status.js';
import { createCostLedger } from '../../../../server/hardware/costs.js';
import { Dram, type Frame } from '../../../../server/hardware/dram.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { asid as asidOf, hpa, hpaToPfn, PAGE_SIZE } from '../../../../server/hardware/units.js';

/** Public test vectors lie beside the project; tests that need them are skipped, with this reason, where they are absent. */
const VECTORS = new URL('../../../../../shared/vectors/sev/', import.meta.url);
export const vectorsAbsent = !existsSync(VECTORS) && !(process.env.SIMKVM_REQUIRE ?? '').split(',').includes('vectors');
export const VECTORS_NEEDED = 'needs ../shared/vectors/sev';
export const vector = (name: string): Uint8Array => new Uint8Array(readFileSync(new URL(name, VECTORS)));
export const jsonVector = (name: string): unknown => JSON.parse(readFileSync(new URL(name, VECTORS), 'utf8'));

export const C_BIT = 2 ** C_BIT_POSITION;
export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
export const unhex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'hex'));

/** Sets fields of a command buffer: pairs of field and value. */
export type Setting = (buffer: Uint8Array) => void;
export const set =
  <Value>(field: Field<Value>, value: Value): Setting =>
  (buffer) =>
    field.set(buffer, value);

export interface Answer {
  readonly status: Status;
  /** The command buffer afterwards. */
  readonly buffer: Uint8Array;
}

export interface RigOptions {
  readonly seed?: string;
  readonly cpus?: number;
  readonly asids?: { readonly count: number; readonly minSev: number };
}

/** An AMD host with its secure processor and nothing else: the test plays the driver. */
export function createRig({ seed = 'rig', cpus = 2, asids = { count: 8, minSev: 5 } }: RigOptions = {}) {
  const dram = new Dram(0x100, 0x4000);
  const ledger = createCostLedger();
  const platform = createAmdPlatform({ dram, entropy: createEntropy(seed), charge: ledger.charge, cpus, asids });
  const { processor } = platform;

  function frame(): Frame {
    const allocated = dram.allocate();
    if (allocated === null) throw new Error('the rig has no memory left');
    return allocated;
  }

  /** Contiguous memory that holds `bytes`; its address. */
  function place(bytes: Uint8Array): number {
    const frames = Array.from({ length: Math.max(1, Math.ceil(bytes.length / PAGE_SIZE)) }, frame);
    frames.forEach((each, index) => {
      const part = bytes.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
      each.viewForWrite(null).set(part);
    });
    const [first] = frames;
    if (first === undefined) throw new Error('nothing allocated');
    if (frames.some((each, index) => each.pfn !== first.pfn + index)) throw new Error('the rig got scattered frames');
    return first.hpa;
  }

  /** What the bare cells of a range hold. */
  function cells(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = address + done;
      const found = dram.at(hpaToPfn(hpa(at)));
      if (found === undefined) throw new Error(`no memory at ${at}`);
      const part = found.view(null).subarray(at % PAGE_SIZE, Math.min(PAGE_SIZE, (at % PAGE_SIZE) + length - done));
      bytes.set(part, done);
      done += part.length;
    }
    return bytes;
  }

  /** What the guest with an ASID sees in a range of its memory. */
  function seenBy(asid: number, address: number, length: number): Uint8Array {
    const key = platform.asidKeys.keyOf(asidOf(asid));
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const offset = (address + done) % PAGE_SIZE;
      const found = dram.at(hpaToPfn(hpa(address + done)));
      if (key === null || found === undefined) throw new Error('no such guest memory');
      const part = found.view(key).subarray(offset, Math.min(PAGE_SIZE, offset + length - done));
      bytes.set(part, done);
      done += part.length;
    }
    return bytes;
  }

  function issue(name: CommandName, struct: Struct | null = null, ...settings: Setting[]): Answer {
    if (struct === null) return { status: processor.issue(COMMAND[name], hpa(0)), buffer: new Uint8Array(0) };
    const buffer = new Uint8Array(struct.size);
    for (const apply of settings) apply(buffer);
    const home = frame();
    home.viewForWrite(null).set(buffer);
    const status = processor.issue(COMMAND[name], home.hpa);
    const after = home.view(null).slice(0, struct.size);
    dram.free(home);
    return { status, buffer: after };
  }

  function expectSuccess(answer: Answer, what: string): Answer {
    if (answer.status !== STATUS.SUCCESS) throw new Error(`${what}: status ${answer.status}`);
    return answer;
  }

  const HANDLE = u32(0);
  const onGuest = (name: CommandName, handle: number): Answer => issue(name, buffers.GUEST_HANDLE, set(HANDLE, handle));

  const rig = {
    ...platform,
    dram,
    ledger,
    frame,
    place,
    cells,
    seenBy,
    issue,
    onGuest,

    /** INIT with SEV-ES, and the flush that Linux does after it. */
    init(): void {
      expectSuccess(
        issue('INIT', buffers.INIT, set(buffers.INIT.options, buffers.INIT_OPTION_ES), set(buffers.INIT.tmrLength, 0x10_0000)),
        'INIT',
      );
      rig.flush();
    },

    flush(): void {
      platform.wbinvdOnAllCpus();
      expectSuccess(issue('DF_FLUSH'), 'DF_FLUSH');
    },

    /** LAUNCH_START without a session; the handle. */
    launchStart(policy = 0, sharedWith = 0): number {
      const { LAUNCH_START } = buffers;
      const answer = issue('LAUNCH_START', LAUNCH_START, set(LAUNCH_START.policy, policy), set(LAUNCH_START.handle, sharedWith));
      return LAUNCH_START.handle.get(expectSuccess(answer, 'LAUNCH_START').buffer);
    },

    activate(handle: number, asid: number): Status {
      return issue('ACTIVATE', buffers.ACTIVATE, set(buffers.ACTIVATE.handle, handle), set(buffers.ACTIVATE.asid, asid)).status;
    },

    launchUpdate(name: 'LAUNCH_UPDATE_DATA' | 'LAUNCH_UPDATE_VMSA', handle: number, paddr: number, length: number): Status {
      const { LAUNCH_UPDATE } = buffers;
      return issue(
        name,
        LAUNCH_UPDATE,
        set(LAUNCH_UPDATE.handle, handle),
        set(LAUNCH_UPDATE.paddr, paddr),
        set(LAUNCH_UPDATE.length, length),
      ).status;
    },

    /** LAUNCH_MEASURE; the 48 bytes. */
    measure(handle: number): Uint8Array {
      const { LAUNCH_MEASURE } = buffers;
      const paddr = place(new Uint8Array(48));
      const answer = issue(
        'LAUNCH_MEASURE',
        LAUNCH_MEASURE,
        set(LAUNCH_MEASURE.handle, handle),
        set(LAUNCH_MEASURE.measurePaddr, paddr),
        set(LAUNCH_MEASURE.measureLength, 48),
      );
      expectSuccess(answer, 'LAUNCH_MEASURE');
      return cells(paddr, 48);
    },

    guestStatus(handle: number): Answer {
      return issue('GUEST_STATUS', buffers.GUEST_STATUS, set(buffers.GUEST_STATUS.handle, handle));
    },

    /** PDH_CERT_EXPORT: the PDH certificate and the chain. */
    exportCertificates(): { readonly pdh: Uint8Array; readonly chain: Uint8Array } {
      const { PDH_CERT_EXPORT } = buffers;
      const pdhPaddr = place(new Uint8Array(SEV_CERTIFICATE.size));
      const certsPaddr = place(new Uint8Array(CHAIN_LENGTH));
      const answer = issue(
        'PDH_CERT_EXPORT',
        PDH_CERT_EXPORT,
        set(PDH_CERT_EXPORT.pdhCertPaddr, pdhPaddr),
        set(PDH_CERT_EXPORT.pdhCertLength, SEV_CERTIFICATE.size),
        set(PDH_CERT_EXPORT.certsPaddr, certsPaddr),
        set(PDH_CERT_EXPORT.certsLength, CHAIN_LENGTH),
      );
      expectSuccess(answer, 'PDH_CERT_EXPORT');
      return { pdh: cells(pdhPaddr, SEV_CERTIFICATE.size), chain: cells(certsPaddr, CHAIN_LENGTH) };
    },
  };
  return rig;
}

export type Rig = ReturnType<typeof createRig>;
