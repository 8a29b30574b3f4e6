import type { deviceCalls } from '../device.js';
import {
  type Device,
  KvmCap,
  KvmDeviceType,
  KvmIoeventfdFlag,
  KvmIrqchipId,
  KvmIrqfdFlag,
  type Outcome,
  type PostMovePolicyName,
  SevCmdId,
  type SimKvm,
  type Vcpu,
  type Vm,
} from '../index.js';
import type { sevCalls } from '../sev.js';
import type { vcpuCalls } from '../vcpu-calls.js';
import type { vmCalls } from '../vm-calls.js';
import { NVME, QUEUES } from './guest/layout.js';
import { inLanes } from './lanes.js';
import { Scenario, type ScenarioOptions } from './scenario.js';
import { irqRoutes } from './vmm/nvme-device.js';
import type { Vmm } from './vmm/vmm.js';

/**
 * Every ioctl that the contract has on a VM, a vCPU and a device, made once on a VM whose context has moved away. Arguments
 * are those with which the call succeeds on a VM that is well, as far as there are any, so that what answers is the policy
 * before it is anything else. Calls that take something away come last.
 */

/** What the calls are made on, and with. */
interface Target {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly device: Device;
  readonly vmm: Vmm;
  /** A VM of the same process that never was encrypted. */
  readonly other: Vm;
  /** An eventfd of nobody's. */
  readonly eventfd: number;
  /** A page of the process. */
  readonly page: bigint;
  /** What the vCPU reported before anything moved. */
  readonly saved: Awaited<ReturnType<typeof savedOf>>;
}

const savedOf = async (vcpu: Vcpu) => ({
  sregs: await vcpu.getSregs(),
  sregs2: await vcpu.getSregs2(),
  events: await vcpu.getVcpuEvents(),
  cpuid: await vcpu.getCpuid2(),
});

type Call = (target: Target) => Promise<Outcome<unknown>>;

/** One call, or several with different arguments, by what tells them apart. */
type Calls = Call | Readonly<Record<string, Call>>;

type Covered<Table> = Readonly<Record<keyof Table, Calls>>;

const PAGE = 4096;
const FREE_GPA = 0x1_0000_0000n;
const FREE_SLOT = 9;
const FREE_VCPU = 9;
const NO_ATTRIBUTE = { group: 0, attr: 0n, addr: 0n } as const;
const BAD_FD = -1;
/** Reason of a refusal by the daemon, which comes before any policy: the request has no value for a field. */
const MALFORMED = 'FIELD_MISSING';
const zone = { addr: 0xfd00_0000n, size: 8 };
const region = ({ vmm }: Target) => ({ addr: vmm.memory.userspaceAddress(0n), size: vmm.memory.slots[0]?.size ?? 0n });
const chip = { chip_id: KvmIrqchipId.KVM_IRQCHIP_PIC_MASTER };
const freeDoorbell = { addr: BigInt(NVME.BAR0 + 0x2000), len: 4 };

const slot =
  (size: bigint) =>
  ({ vmm }: Target) => ({
    slot: FREE_SLOT,
    guest_phys_addr: FREE_GPA,
    memory_size: size,
    userspace_addr: vmm.memory.address,
  });
const [addSlot, deleteSlot] = [slot(BigInt(PAGE)), slot(0n)];

/** KVM_GET_* followed by KVM_SET_* of what it gave; where nothing is given, of nothing. */
const VM_CALLS: Omit<Covered<typeof vmCalls>, 'inspect' | 'setPostMovePolicy' | keyof typeof deviceCalls> = {
  checkExtension: ({ vm }) => vm.try.checkExtension(KvmCap.KVM_CAP_IRQCHIP),
  getIrqchip: ({ vm }) => vm.try.getIrqchip(chip),
  getPit2: ({ vm }) => vm.try.getPit2(),
  getClock: ({ vm }) => vm.try.getClock(),
  getTscKhz: ({ vm }) => vm.try.getTscKhz(),
  getDirtyLog: ({ vm }) => vm.try.getDirtyLog({ slot: 0 }),
  getStatsFd: ({ vm }) => vm.try.getStatsFd(),
  testDevice: ({ vm }) => vm.try.testDevice(KvmDeviceType.KVM_DEV_TYPE_VFIO),
  clearDirtyLog: ({ vm }) => vm.try.clearDirtyLog({ slot: 0, num_pages: 64, first_page: 0n }),
  resetDirtyRings: ({ vm }) => vm.try.resetDirtyRings(),
  setMemoryAttributes: ({ vm }) => vm.try.setMemoryAttributes({ address: FREE_GPA, size: BigInt(PAGE), attributes: 0n }),
  createGuestMemfd: ({ vm }) => vm.try.createGuestMemfd({ size: BigInt(PAGE) }),
  createIrqchip: ({ vm }) => vm.try.createIrqchip(),
  setIrqchip: ({ vm }) => vm.try.setIrqchip({ ...chip, pic: {} }),
  irqLine: ({ vm }) => vm.try.irqLine({ irq: 3, level: 0 }),
  irqLineStatus: ({ vm }) => vm.try.irqLineStatus({ irq: 3, level: 0 }),
  setGsiRouting: ({ vm }) => vm.try.setGsiRouting({ entries: irqRoutes() }),
  signalMsi: ({ vm }) => vm.try.signalMsi({ address_lo: 0xfee0_0000, data: 0xf0 }),
  registerCoalescedMmio: ({ vm }) => vm.try.registerCoalescedMmio(zone),
  unregisterCoalescedMmio: ({ vm }) => vm.try.unregisterCoalescedMmio(zone),
  createPit2: ({ vm }) => vm.try.createPit2({}),
  setPit2: ({ vm }) => vm.try.setPit2({}),
  setNrMmuPages: ({ vm }) => vm.try.setNrMmuPages(1024n),
  setTssAddr: ({ vm }) => vm.try.setTssAddr(0xfffb_d000n),
  setIdentityMapAddr: ({ vm }) => vm.try.setIdentityMapAddr(0xfffb_c000n),
  setBootCpuId: ({ vm }) => vm.try.setBootCpuId(0n),
  setClock: ({ vm }) => vm.try.setClock({ clock: 1n }),
  setTscKhz: ({ vm }) => vm.try.setTscKhz(0n),
  x86SetMsrFilter: ({ vm }) => vm.try.x86SetMsrFilter({}),
  createDevice: ({ vm }) => vm.try.createDevice(KvmDeviceType.KVM_DEV_TYPE_VFIO),
  enableCap: ({ vm }) => vm.try.enableCap({ cap: KvmCap.KVM_CAP_EXCEPTION_PAYLOAD, args: [1n] }),
  createVcpu: ({ vm }) => vm.try.createVcpu(FREE_VCPU),
  setUserMemoryRegion: {
    add: (target) => target.vm.try.setUserMemoryRegion(addSlot(target)),
    delete: (target) => target.vm.try.setUserMemoryRegion(deleteSlot(target)),
  },
  setUserMemoryRegion2: {
    add: (target) => target.vm.try.setUserMemoryRegion2(addSlot(target)),
    delete: (target) => target.vm.try.setUserMemoryRegion2(deleteSlot(target)),
  },
  ioeventfd: {
    assign: ({ vm, eventfd }) => vm.try.ioeventfd({ ...freeDoorbell, fd: eventfd }),
    deassign: ({ vm, eventfd }) =>
      vm.try.ioeventfd({ ...freeDoorbell, fd: eventfd, flags: KvmIoeventfdFlag.KVM_IOEVENTFD_FLAG_DEASSIGN }),
  },
  irqfd: {
    assign: ({ vm, eventfd }) => vm.try.irqfd({ fd: eventfd, gsi: QUEUES[0]?.interrupt.gsi ?? 0 }),
    deassign: ({ vm, eventfd }) =>
      vm.try.irqfd({ fd: eventfd, gsi: QUEUES[0]?.interrupt.gsi ?? 0, flags: KvmIrqfdFlag.KVM_IRQFD_FLAG_DEASSIGN }),
  },
  memoryEncryptOp: ({ vm }) => vm.try.memoryEncryptOp({ id: SevCmdId.KVM_SEV_GUEST_STATUS }),
  memoryEncryptRegRegion: (target) => target.vm.try.memoryEncryptRegRegion(region(target)),
  memoryEncryptUnregRegion: (target) => target.vm.try.memoryEncryptUnregRegion(region(target)),
  moveEncContextFrom: ({ vm, other }) => vm.try.moveEncContextFrom(other),
  copyEncContextFrom: ({ vm, other }) => vm.try.copyEncContextFrom(other),
  dismantleVm: ({ vm }) => vm.try.dismantleVm(),
};

const SEV_CALLS: Covered<typeof sevCalls> = {
  guestStatus: ({ vm }) => vm.sev.try.guestStatus(),
  getAttestationReport: ({ vm }) => vm.sev.try.getAttestationReport({ mnonce: new Uint8Array(16), len: 208 }),
  init: ({ vm }) => vm.sev.try.init(),
  esInit: ({ vm }) => vm.sev.try.esInit(),
  init2: ({ vm }) => vm.sev.try.init2({}),
  launchStart: ({ vm }) => vm.sev.try.launchStart({ policy: 0 }, BAD_FD),
  launchUpdateData: ({ vm, page }) => vm.sev.try.launchUpdateData({ uaddr: page, len: PAGE }),
  launchUpdateVmsa: ({ vm }) => vm.sev.try.launchUpdateVmsa(),
  launchSecret: ({ vm, page }) => vm.sev.try.launchSecret({ guest_uaddr: page, guest_len: 16 }),
  launchMeasure: ({ vm }) => vm.sev.try.launchMeasure({ len: 48 }),
  launchFinish: ({ vm }) => vm.sev.try.launchFinish(),
  sendStart: ({ vm }) => vm.sev.try.sendStart({ policy: 0, session_len: 0 }),
  sendUpdateData: ({ vm, page }) =>
    vm.sev.try.sendUpdateData({ hdr_len: 52, guest_uaddr: page, guest_len: PAGE, trans_len: PAGE }),
  sendUpdateVmsa: ({ vm }) => vm.sev.try.sendUpdateVmsa(),
  sendFinish: ({ vm }) => vm.sev.try.sendFinish(),
  sendCancel: ({ vm }) => vm.sev.try.sendCancel(),
  receiveStart: ({ vm }) => vm.sev.try.receiveStart({ policy: 0 }, BAD_FD),
  receiveUpdateData: ({ vm, page }) => vm.sev.try.receiveUpdateData({ guest_uaddr: page, guest_len: PAGE }),
  receiveUpdateVmsa: ({ vm }) => vm.sev.try.receiveUpdateVmsa(),
  receiveFinish: ({ vm }) => vm.sev.try.receiveFinish(),
  dbgDecrypt: ({ vm, page }) => vm.sev.try.dbgDecrypt({ src_uaddr: page, dst_uaddr: page, len: 16 }),
  dbgEncrypt: ({ vm, page }) => vm.sev.try.dbgEncrypt({ src_uaddr: page, dst_uaddr: page, len: 16 }),
  certExport: ({ vm }) => vm.sev.try.certExport(),
  snpLaunchStart: ({ vm }) => vm.sev.try.snpLaunchStart({ policy: 0n }, BAD_FD),
  snpLaunchUpdate: ({ vm, page }) =>
    vm.sev.try.snpLaunchUpdate({ gfn_start: 0n, uaddr: page, len: BigInt(PAGE), type: 1 }, BAD_FD),
  snpLaunchFinish: ({ vm }) => vm.sev.try.snpLaunchFinish({}, BAD_FD),
  snpEnableReqCerts: ({ vm }) => vm.sev.try.snpEnableReqCerts(),
};

const VCPU_CALLS: Covered<typeof vcpuCalls> = {
  getRegs: ({ vcpu }) => vcpu.try.getRegs(),
  getSregs: ({ vcpu }) => vcpu.try.getSregs(),
  getSregs2: ({ vcpu }) => vcpu.try.getSregs2(),
  getFpu: ({ vcpu }) => vcpu.try.getFpu(),
  getXsave: ({ vcpu }) => vcpu.try.getXsave(),
  getXsave2: ({ vcpu }) => vcpu.try.getXsave2(),
  getXcrs: ({ vcpu }) => vcpu.try.getXcrs(),
  getDebugregs: ({ vcpu }) => vcpu.try.getDebugregs(),
  getMsrs: ({ vcpu }) => vcpu.try.getMsrs({ entries: [{ index: 0x10 }] }),
  getLapic: ({ vcpu }) => vcpu.try.getLapic(),
  getMpState: ({ vcpu }) => vcpu.try.getMpState(),
  getVcpuEvents: ({ vcpu }) => vcpu.try.getVcpuEvents(),
  getCpuid2: ({ vcpu }) => vcpu.try.getCpuid2(),
  getTscKhz: ({ vcpu }) => vcpu.try.getTscKhz(),
  getOneReg: ({ vcpu }) => vcpu.try.getOneReg({ id: 0n, addr: 0n }),
  getStatsFd: ({ vcpu }) => vcpu.try.getStatsFd(),
  translate: ({ vcpu }) => vcpu.try.translate({ linear_address: 0n }),
  hasDeviceAttr: ({ vcpu }) => vcpu.try.hasDeviceAttr(NO_ATTRIBUTE),
  getDeviceAttr: ({ vcpu }) => vcpu.try.getDeviceAttr(NO_ATTRIBUTE),
  setDeviceAttr: ({ vcpu }) => vcpu.try.setDeviceAttr(NO_ATTRIBUTE),
  setRegs: ({ vcpu }) => vcpu.try.setRegs({ rflags: 2n }),
  setSregs: ({ vcpu, saved }) => vcpu.try.setSregs(saved.sregs),
  setSregs2: ({ vcpu, saved }) => vcpu.try.setSregs2(saved.sregs2),
  setFpu: ({ vcpu }) => vcpu.try.setFpu({}),
  setXsave: ({ vcpu }) => vcpu.try.setXsave({}),
  setXcrs: ({ vcpu }) => vcpu.try.setXcrs({ nr_xcrs: 0 }),
  setDebugregs: ({ vcpu }) => vcpu.try.setDebugregs({}),
  setMsrs: ({ vcpu }) => vcpu.try.setMsrs({ entries: [{ index: 0x10, data: 0n }] }),
  setLapic: ({ vcpu }) => vcpu.try.setLapic({ regs: new Uint8Array(1024) }),
  setMpState: ({ vcpu }) => vcpu.try.setMpState({ mp_state: 0 }),
  setVcpuEvents: ({ vcpu, saved }) => vcpu.try.setVcpuEvents(saved.events),
  setCpuid2: ({ vcpu, saved }) => vcpu.try.setCpuid2(saved.cpuid),
  setTscKhz: ({ vcpu }) => vcpu.try.setTscKhz(0n),
  setOneReg: ({ vcpu }) => vcpu.try.setOneReg({ id: 0n, addr: 0n }),
  setSignalMask: ({ vcpu }) => vcpu.try.setSignalMask(),
  setGuestDebug: ({ vcpu }) => vcpu.try.setGuestDebug({ control: 0 }),
  setVapicAddr: ({ vcpu }) => vcpu.try.setVapicAddr({ vapic_addr: 0n }),
  tprAccessReporting: ({ vcpu }) => vcpu.try.tprAccessReporting({ enabled: 0 }),
  kvmclockCtrl: ({ vcpu }) => vcpu.try.kvmclockCtrl(),
  interrupt: ({ vcpu }) => vcpu.try.interrupt({ irq: 0x30 }),
  nmi: ({ vcpu }) => vcpu.try.nmi(),
  smi: ({ vcpu }) => vcpu.try.smi(),
  enableCap: ({ vcpu }) => vcpu.try.enableCap({ cap: KvmCap.KVM_CAP_HYPERV_SYNIC }),
  preFaultMemory: ({ vcpu }) => vcpu.try.preFaultMemory({ gpa: 0n, size: BigInt(PAGE) }),
  memoryEncryptOp: ({ vcpu }) => vcpu.try.memoryEncryptOp({ id: 0 }),
  run: ({ vcpu }) => vcpu.try.run({ immediate_exit: 1 }),
};

const DEVICE_CALLS: Covered<typeof deviceCalls> = {
  hasDeviceAttr: ({ device }) => device.try.hasDeviceAttr(NO_ATTRIBUTE),
  getDeviceAttr: ({ device }) => device.try.getDeviceAttr(NO_ATTRIBUTE),
  setDeviceAttr: ({ device }) => device.try.setDeviceAttr(NO_ATTRIBUTE),
};

const ON_VM_ATTRIBUTES: Covered<typeof deviceCalls> = {
  hasDeviceAttr: ({ vm }) => vm.try.hasDeviceAttr(NO_ATTRIBUTE),
  getDeviceAttr: ({ vm }) => vm.try.getDeviceAttr(NO_ATTRIBUTE),
  setDeviceAttr: ({ vm }) => vm.try.setDeviceAttr(NO_ATTRIBUTE),
};

/** In the order in which they are made. */
const SCOPES: readonly (readonly [scope: string, calls: Readonly<Record<string, Calls>>])[] = [
  ['vcpu', VCPU_CALLS],
  ['device', DEVICE_CALLS],
  ['vm', ON_VM_ATTRIBUTES],
  ['sev', SEV_CALLS],
  ['vm', VM_CALLS],
];

/** Methods that are an ioctl with a certain argument. */
const SPECIAL: Readonly<Record<string, string>> = {
  testDevice: 'KVM_CREATE_DEVICE test',
  moveEncContextFrom: 'KVM_ENABLE_CAP KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM',
  copyEncContextFrom: 'KVM_ENABLE_CAP KVM_CAP_VM_COPY_ENC_CONTEXT_FROM',
};

/** KVM's name of a method: `KVM_SET_GSI_ROUTING`. */
const ioctlName = (scope: string, method: string): string => {
  const special = SPECIAL[method];
  if (special !== undefined) return special;
  const words = method.replace(/([A-Z])/g, '_$1').toUpperCase();
  return `${scope === 'sev' ? 'KVM_SEV_' : 'KVM_'}${words}`;
};

const ALL: readonly { readonly name: string; readonly call: Call }[] = SCOPES.flatMap(([scope, calls]) =>
  Object.entries(calls).flatMap(([method, entry]) => {
    const name = `${scope}: ${ioctlName(scope, method)}`;
    if (typeof entry === 'function') return [{ name, call: entry }];
    return Object.entries(entry).map(([variant, call]) => ({ name: `${name} ${variant}`, call }));
  }),
);

/** The columns: before any move, and after one under each policy. */
export type MatrixColumn = 'not moved' | PostMovePolicyName;

/** What every ioctl answered, `0` or an errno, by column. */
export interface MatrixRow {
  readonly ioctl: string;
  readonly answers: Readonly<Partial<Record<MatrixColumn, string>>>;
}

const answersOf = async (
  simkvm: SimKvm,
  options: ScenarioOptions,
  policy: PostMovePolicyName | null,
): Promise<Map<string, string>> => {
  await using scenario = await Scenario.start(simkvm, options);
  const { source } = scenario;
  await scenario.pause({ quiet: true });
  const device = await source.vm.createDevice(KvmDeviceType.KVM_DEV_TYPE_VFIO);
  const target: Target = {
    ...{ vm: source.vm, vcpu: source.bootVcpu, device, vmm: source, other: await source.kvm.createVm() },
    eventfd: (await source.process.eventfd()).fd,
    page: await source.process.memory.mmap({ length: PAGE }),
    saved: await savedOf(source.bootVcpu),
  };
  if (policy !== null) {
    await scenario.createDestination();
    await scenario.move(policy);
  }
  const answers = new Map<string, string>();
  for (const { name, call } of ALL) {
    const { errno, error } = await call(target);
    if (error?.reason === MALFORMED) throw new Error(`the kernel was not asked: ${name}`, { cause: error });
    answers.set(name, errno ?? '0');
  }
  return answers;
};

/** Observes the matrix for these policies. @param progress is told when a column is done, and how many there are */
export const observeMatrix = async (
  hosts: readonly SimKvm[],
  options: ScenarioOptions,
  policies: readonly PostMovePolicyName[],
  progress: (columns: number) => void,
): Promise<readonly MatrixRow[]> => {
  const columns = new Map<MatrixColumn, Map<string, string>>();
  const wanted = ['not moved', ...policies] as const;
  const jobs = wanted.map((column) => async (simkvm: SimKvm) => {
    columns.set(column, await answersOf(simkvm, options, column === 'not moved' ? null : column));
    progress(wanted.length);
  });
  await inLanes(hosts, jobs);
  return ALL.map(({ name }) => ({
    ioctl: name,
    answers: Object.fromEntries(wanted.map((column) => [column, columns.get(column)?.get(name)])),
  }));
};
