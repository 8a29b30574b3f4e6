import { KVM_IRQ_ROUTING, KVM_IRQCHIP } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import {
  kvm_ioapic_state,
  kvm_irq_level,
  kvm_irq_level__status,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irq_routing_irqchip,
  kvm_irq_routing_msi,
  kvm_irqchip,
  kvm_msi,
  kvm_pic_state,
  kvm_pit_config,
  kvm_pit_state2,
} from '../../../server/kernel/uapi/irq-structs.js';
import { type OpArgs, toHex } from '../op-args.js';
import { finish, type Operation } from '../operation.js';
import { ioctlIn, ioctlInOut, valueOp } from './ioctl.js';

const ROUTES_MAX = 8192;

const getIrqchip: Operation = async (executor, args) => {
  const request = kvm_irqchip.encode({ chip_id: args.u32('chip_id') });
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_IRQCHIP, request);
  if (outcome.ret !== 0n) return finish(outcome);
  const { chip_id, chip } = kvm_irqchip.decode(data);
  const size = chip_id === KVM_IRQCHIP.IOAPIC ? kvm_ioapic_state.size : kvm_pic_state.size;
  return { ...finish(outcome), chip: toHex(chip.subarray(0, size)) };
};

const setIrqchip: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_IRQCHIP,
    kvm_irqchip.encode({ chip_id: args.u32('chip_id'), chip: args.bytes('data') }),
  );

const createPit2: Operation = (executor, args) => {
  const bytes = kvm_pit_config.encode({ flags: args.u32('flags') });
  if (args.has('pad')) bytes[4 + (args.number('pad') % 15) * 4] = 1;
  return ioctlIn(executor, args.fd, IOCTL.KVM_CREATE_PIT2, bytes);
};

const getPit2: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_PIT2, kvm_pit_state2.encode({}));
  if (outcome.ret !== 0n) return finish(outcome);
  const { flags, channels } = kvm_pit_state2.decode(data);
  return { ...finish(outcome), flags, channels: channels.map(({ count, mode, bcd, gate }) => ({ count, mode, bcd, gate })) };
};

const level = (args: OpArgs): Uint8Array => kvm_irq_level.encode({ irq: args.u32('irq'), level: args.u32('level') });

const irqLineStatus: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_IRQ_LINE_STATUS, level(args));
  return outcome.ret === 0n ? { ...finish(outcome), status: kvm_irq_level__status.decode(data).status } : finish(outcome);
};

const signalMsi: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SIGNAL_MSI,
    kvm_msi.encode({
      address_lo: args.u32('address_lo'),
      address_hi: args.u32('address_hi'),
      data: args.u32('data'),
      flags: args.u32('flags'),
      devid: args.u32('devid'),
    }),
  );

const routeBytes = (entry: OpArgs): Uint8Array => {
  const type = entry.u32('type', KVM_IRQ_ROUTING.IRQCHIP);
  const target =
    type === KVM_IRQ_ROUTING.MSI
      ? kvm_irq_routing_msi.encode({
          address_lo: entry.u32('address_lo'),
          address_hi: entry.u32('address_hi'),
          data: entry.u32('data'),
        })
      : kvm_irq_routing_irqchip.encode({ irqchip: entry.u32('irqchip'), pin: entry.u32('pin') });
  return kvm_irq_routing_entry.encode({
    gsi: entry.u32('gsi'),
    type,
    flags: entry.u32('flags'),
    pad: entry.u32('pad'),
    u: target,
  });
};

const setGsiRouting: Operation = (executor, args) => {
  const entries = args.items('entries').slice(0, ROUTES_MAX);
  const bytes = new Uint8Array(kvm_irq_routing.size + ROUTES_MAX * kvm_irq_routing_entry.size);
  kvm_irq_routing.write(bytes, { nr: args.u32('nr', entries.length), flags: args.u32('flags') });
  for (const [index, entry] of entries.entries())
    bytes.set(routeBytes(entry), kvm_irq_routing.size + index * kvm_irq_routing_entry.size);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_GSI_ROUTING, bytes);
};

/** Ops on the interrupt controllers and the timer of a VM. */
export const IRQ_OPS: Readonly<Record<string, Operation>> = {
  create_irqchip: valueOp(IOCTL.KVM_CREATE_IRQCHIP, 'arg'),
  get_irqchip: getIrqchip,
  set_irqchip: setIrqchip,
  create_pit2: createPit2,
  get_pit2: getPit2,
  irq_line: (executor, args) => ioctlIn(executor, args.fd, IOCTL.KVM_IRQ_LINE, level(args)),
  irq_line_status: irqLineStatus,
  signal_msi: signalMsi,
  set_gsi_routing: setGsiRouting,
  set_boot_cpu_id: valueOp(IOCTL.KVM_SET_BOOT_CPU_ID, 'id'),
};
