/** Commands of fcntl that are simulated (include/uapi/asm-generic/fcntl.h, linux/fcntl.h). */
export const F = { DUPFD: 0, GETFD: 1, SETFD: 2, GETFL: 3, SETFL: 4, DUPFD_CLOEXEC: 1030 } as const;

/** The only descriptor flag. */
export const FD_CLOEXEC = 1;

/** Requests of ioctl that the file system layer answers for every file (include/uapi/asm-generic/ioctls.h). */
export const FIOCLEX = 0x5451;
export const FIONCLEX = 0x5450;
export const FIONBIO = 0x5421;
