/** Constants of the kernel's user API that system calls take, with the kernel's values on x86-64. KVM's are in the contract. */

/** Flags of open(2). */
export const O = { RDONLY: 0, RDWR: 2, NONBLOCK: 0x800, CLOEXEC: 0x8_0000 } as const;

/** Protections of mmap(2). */
export const PROT = { NONE: 0, READ: 1, WRITE: 2, EXEC: 4 } as const;

/** Flags of mmap(2). */
export const MAP = { SHARED: 1, PRIVATE: 2, FIXED: 0x10, ANONYMOUS: 0x20, FIXED_NOREPLACE: 0x10_0000 } as const;

/** Advice of madvise(2). */
export const MADV = { DONTNEED: 4, REMOVE: 9 } as const;

/** Flags of memfd_create(2). */
export const MFD = { CLOEXEC: 1, ALLOW_SEALING: 2 } as const;

/** Modes of fallocate(2). */
export const FALLOC_FL = { KEEP_SIZE: 1, PUNCH_HOLE: 2 } as const;

/** Flags of eventfd(2). */
export const EFD = { SEMAPHORE: 1, NONBLOCK: 0x800, CLOEXEC: 0x8_0000 } as const;

/** Events of poll(2). */
export const POLL = { IN: 1, OUT: 4, ERR: 8, HUP: 16, NVAL: 32 } as const;

/** What rt_sigprocmask(2) does with the signals. */
export const SIG = { BLOCK: 0, UNBLOCK: 1, SETMASK: 2 } as const;

/** Origins of lseek(2). */
export const SEEK = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const;

/** Commands of fcntl(2). */
export const F = {
  DUPFD: 0,
  GETFD: 1,
  SETFD: 2,
  GETFL: 3,
  SETFL: 4,
  DUPFD_CLOEXEC: 1030,
  ADD_SEALS: 1033,
  GET_SEALS: 1034,
} as const;
