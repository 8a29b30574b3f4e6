import type { Command } from 'commander';
import { EncryptionKind, IoBus, KvmMpStateValue, KvmX86VmType, type Vm, VmState, type VmSummary } from '../../gen/messages.js';
import { policyName } from '../post-move-policy.js';
import { bytes, fields, hex, table } from './output.js';
import { type Console, type GlobalOptions, runCommand } from './session.js';

const typeName = (type: number): string => KvmX86VmType[type]?.replace(/^KVM_X86_|_VM$/g, '') ?? String(type);
const stateName = (state: number): string => VmState[state]?.replace('VM_STATE_', '').toLowerCase() ?? String(state);

const renderVms = (vms: readonly VmSummary[]): string =>
  vms.length === 0
    ? 'no VMs'
    : table(
        ['VM', 'PID', 'TYPE', 'STATE', 'VCPUS', 'MEMSLOTS', 'ASID', 'REACHABLE', 'CHARGED', 'FILE'],
        vms.map((vm) => [
          vm.vm_id,
          vm.owner_pid,
          typeName(vm.type),
          stateName(vm.state),
          vm.vcpus,
          vm.memslots,
          vm.asid,
          bytes(vm.kmem_reachable_bytes),
          bytes(vm.kmem_charged_bytes),
          vm.file_open ? 'open' : 'closed',
        ]),
      );

const causeOf = ({ death_cause }: Vm): string => {
  if (death_cause?.moved) return `, moved to VM ${death_cause.moved.to_vm_id} by pid ${death_cause.moved.by_pid}`;
  if (death_cause?.sent) return `, sent to another host in migration ${death_cause.sent.session}`;
  if (death_cause?.discarded) return ', discarded by a migration that did not arrive';
  return death_cause?.bugged ? `, bugged by ${death_cause.bugged.check}` : '';
};

const section = (head: readonly string[], rows: readonly (readonly (string | number | bigint)[])[]): string[] =>
  rows.length === 0 ? [] : [table(head, rows)];

const renderVm = (vm: Vm): string => {
  const { encryption_context: sev, irqchip } = vm;
  const pairs: [string, string | number | bigint | boolean][] = [
    ['VM', vm.vm_id],
    ['type', typeName(vm.type)],
    ['state', `${stateName(vm.state)}${causeOf(vm)}${vm.dismantling ? ', being dismantled' : ''}`],
    ['owner', `pid ${vm.owner_pid}`],
    ['policy', policyName(vm.post_move_policy)],
    ['references', `${vm.references}, file ${vm.file_open ? 'open' : 'closed'}`],
  ];
  if (irqchip !== null) pairs.push(['irqchip', `${irqchip.mode}${irqchip.pit ? ', PIT' : ''}, ${irqchip.routes} routes`]);
  if (sev !== null)
    pairs.push(
      ['encryption', `${EncryptionKind[sev.kind]?.replace('ENCRYPTION_KIND_', '') ?? sev.kind}, ASID ${sev.asid}`],
      ['firmware', `handle ${sev.handle}, state ${sev.guest_state}, policy ${hex(sev.policy)}`],
      ['regions', `${sev.regions.length} registered, ${sev.pages_locked} pages locked`],
    );
  return [
    fields(pairs),
    ...section(
      ['SLOT', 'GUEST PHYSICAL', 'SIZE', 'USERSPACE', 'FLAGS', 'MAPPED PAGES'],
      vm.memslots.map((slot) => [
        slot.slot,
        hex(slot.guest_phys_addr),
        bytes(slot.memory_size),
        hex(slot.userspace_addr),
        hex(slot.flags),
        slot.mapped_pages,
      ]),
    ),
    ...section(
      ['BUS', 'DEVICE', 'ADDRESS', 'LENGTH', 'DATAMATCH'],
      vm.io_devices.map(({ bus, kind, addr, len, datamatch }) => [
        IoBus[bus]?.replace('IO_BUS_', '') ?? String(bus),
        kind,
        hex(addr),
        len,
        datamatch === null ? 'any' : hex(datamatch),
      ]),
    ),
    ...section(
      ['IRQFD GSI', 'EVENTFD', 'RESAMPLE', 'INJECTED'],
      vm.irqfds.map(({ gsi, eventfd_id, resample, injected }) => [gsi, eventfd_id, resample ? 'yes' : 'no', injected]),
    ),
    ...section(
      ['VCPU', 'STATE', 'IN KVM_RUN', 'EXITS', 'INSTRUCTIONS', 'FILE'],
      vm.vcpus.map((vcpu) => [
        vcpu.vcpu_id,
        KvmMpStateValue[vcpu.mp_state]?.replace('KVM_MP_STATE_', '').toLowerCase() ?? String(vcpu.mp_state),
        vcpu.in_run ? 'yes' : 'no',
        vcpu.exits,
        vcpu.instructions,
        vcpu.file_open ? 'open' : 'closed',
      ]),
    ),
    ...section(
      ['KERNEL MEMORY', 'REACHABLE', 'CHARGED'],
      vm.kmem.map(({ type, reachable_bytes, charged_bytes }) => [type, reachable_bytes, charged_bytes]),
    ),
  ].join('\n\n');
};

/** `simkvm vms` and `simkvm vm show ID`. */
export const registerVms = (program: Command, console: Console, vmId: (text: string) => number): void => {
  program
    .command('vms')
    .description('list the VMs for which a reference is held, those whose last fd is closed included')
    .action((_options, command: Command) =>
      runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.host.listVms(), renderVms),
    );
  program
    .command('vm')
    .description('one VM')
    .command('show')
    .description('show what debugfs and /proc would show of a VM: memslots, buses, irqfds, vCPUs, context, kernel memory')
    .argument('<id>', 'number of the VM, as `simkvm vms` lists it', vmId)
    .action((id: number, _options, command: Command) =>
      runCommand(command.optsWithGlobals<GlobalOptions>(), console, (simkvm) => simkvm.host.getVm(id), renderVm),
    );
};
