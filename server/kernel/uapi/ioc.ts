/** Which way an ioctl's structure goes, as its request number says: a few numbers of KVM say it wrongly. */
const IOC = { NONE: 0, WRITE: 1, READ: 2 } as const;

/** `_IOC` (include/uapi/asm-generic/ioctl.h): direction, size of the argument, type byte and number in 32 bits, unsigned. */
const ioc = (direction: number, type: number, number: number, size: number): number =>
  ((direction << 30) | (size << 16) | (type << 8) | number) >>> 0;

/** Type byte of every request of KVM. */
export const KVMIO = 0xae;
/** Type byte of `/dev/sev`: 'S'. */
export const SEV_IOC_TYPE = 0x53;

/** `_IO`: the argument is ignored or a value. */
export const io = (number: number, type: number = KVMIO): number => ioc(IOC.NONE, type, number, 0);
/** `_IOW`: userspace writes the structure, the kernel reads it. */
export const iow = (number: number, size: number, type: number = KVMIO): number => ioc(IOC.WRITE, type, number, size);
/** `_IOR`: the kernel writes the structure. */
export const ior = (number: number, size: number, type: number = KVMIO): number => ioc(IOC.READ, type, number, size);
/** `_IOWR`: both. */
export const iowr = (number: number, size: number, type: number = KVMIO): number => ioc(IOC.READ | IOC.WRITE, type, number, size);
/** The type byte of a request. */
export const iocType = (request: number): number => (request >>> 8) & 0xff;
