/** Bytes of the largest message: a chunk of 1 MiB, or as much of a guest's pages, and what surrounds it. */
export const MESSAGE_MAX = 4 * 2 ** 20;
