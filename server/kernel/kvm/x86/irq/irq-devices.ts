import type { IoDevice } from '../../io-bus.js';
import { type I8254, KVM_PIT_BASE_ADDRESS, KVM_PIT_MEM_LENGTH, KVM_SPEAKER_BASE_ADDRESS } from './i8254.js';
import type { I8259 } from './i8259.js';
import { IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, type Ioapic } from './ioapic.js';

/** The chips on the VM's buses. Wider accesses than a chip knows are swallowed, and read as zero. */

const picPorts = (pic: I8259, name: string, address: number): IoDevice => ({
  name,
  address,
  length: 2,
  write: (_vcpu, port, bytes) => {
    const [value] = bytes;
    if (bytes.length === 1 && value !== undefined) pic.write(port, value);
    return true;
  },
  read: (_vcpu, port, length) => (length === 1 ? Uint8Array.of(pic.read(port)) : new Uint8Array(length)),
});

/** Port bus: master, slave and ELCR, a device each. */
export const picDevices = (pic: I8259): readonly IoDevice[] => [
  picPorts(pic, 'pic-master', 0x20),
  picPorts(pic, 'pic-slave', 0xa0),
  picPorts(pic, 'pic-elcr', 0x4d0),
];

/** MMIO bus. The page lies where user space puts it (KVM_SET_IRQCHIP), but only accesses to the usual place arrive. */
export const ioapicDevice = (ioapic: Ioapic): IoDevice => ({
  name: 'ioapic',
  address: IOAPIC_DEFAULT_BASE_ADDRESS,
  length: IOAPIC_MEM_LENGTH,
  write: (_vcpu, address, bytes) => ioapic.mmioWrite(address, bytes),
  read: (_vcpu, address, length) => ioapic.mmioRead(address, length),
});

const widened = (value: number, length: number): Uint8Array => {
  const data = new Uint8Array(length);
  data[0] = value;
  return data;
};

/** Port bus: the counters, and the speaker port if user space wants it (KVM_PIT_SPEAKER_DUMMY). */
export const pitDevices = (pit: I8254): readonly IoDevice[] => {
  const counters: IoDevice = {
    name: 'pit',
    address: KVM_PIT_BASE_ADDRESS,
    length: KVM_PIT_MEM_LENGTH,
    write: (_vcpu, port, bytes) => {
      pit.write(port, bytes[0] ?? 0);
      return true;
    },
    read: (_vcpu, port, length) => widened(pit.read(port), length),
  };
  const speakerPort: IoDevice = {
    name: 'pit-speaker',
    address: KVM_SPEAKER_BASE_ADDRESS,
    length: 4,
    write: (_vcpu, port, bytes) => {
      if (port !== KVM_SPEAKER_BASE_ADDRESS) return false;
      pit.writeSpeaker(bytes[0] ?? 0);
      return true;
    },
    read: (_vcpu, port, length) => (port === KVM_SPEAKER_BASE_ADDRESS ? widened(pit.readSpeaker(), length) : null),
  };
  return pit.speaker ? [counters, speakerPort] : [counters];
};
